-- Moves a stream's last id forward, so that every id to come is greater. KEYS: the stream.
-- ARGV: milliseconds and sequence number, which are small enough for Lua's numbers.
local info = redis.call('XINFO', 'STREAM', KEYS[1])
local last
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then
    last = info[i + 1]
  end
end
local ms, seq = string.match(last, '^(%d+)%-(%d+)$')
local to_ms, to_seq = tonumber(ARGV[1]), tonumber(ARGV[2])
if tonumber(ms) < to_ms or (tonumber(ms) == to_ms and tonumber(seq) < to_seq) then
  redis.call('XSETID', KEYS[1], ARGV[1] .. '-' .. ARGV[2])
  return 1
end
return 0
