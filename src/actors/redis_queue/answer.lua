-- Gives the answers of one transaction and takes its entries off the queue; all of it or nothing.
-- ARGV: namespace, generation, run of the server, the last batch that is online (empty while the
-- online store is being rebuilt), consumer group, seconds that an answer is kept, then for each
-- entry: id, list, answer, and '1' when it is to be kept aside. Answers the length of the queue, or
-- 'LOST' when this is not the Redis that the store has looked at.
local ns, queue = ARGV[1], ARGV[1] .. ':queue'
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
if run ~= ARGV[3] or redis.call('GET', ns .. ':generation') ~= ARGV[2] then
  return 'LOST'
end
for at = 7, #ARGV, 4 do
  local id, list = ARGV[at], ARGV[at + 1]
  if ARGV[at + 3] == '1' then
    for _, entry in ipairs(redis.call('XRANGE', queue, id, id)) do
      redis.call('XADD', ns .. ':quarantine', '*', 'entry', id, unpack(entry[2]))
    end
  end
  if list ~= '' then
    redis.call('RPUSH', list, ARGV[at + 2])
    redis.call('EXPIRE', list, ARGV[6])
  end
  redis.call('XACK', queue, ARGV[5], id)
  redis.call('XDEL', queue, id)
end
if ARGV[4] ~= '' then
  redis.call('SET', ns .. ':online_to', ARGV[4])
end
return redis.call('XLEN', queue)
