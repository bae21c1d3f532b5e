-- Answers entries and takes them off their stream, all of them or none.
-- ARGV: stream, group, seconds that an answer is kept, number of answers, then for each answer its
-- list and its text, then the ids. A list that is something else is left alone: its entry was
-- decided all the same. Gives how many answers found no list.
local lost = 0
local at = 5
for _ = 1, tonumber(ARGV[4]) do
  local pushed = redis.pcall('RPUSH', ARGV[at], ARGV[at + 1])
  if type(pushed) == 'table' then
    lost = lost + 1
  else
    redis.call('EXPIRE', ARGV[at], ARGV[3])
  end
  at = at + 2
end
for i = at, #ARGV do
  redis.call('XACK', ARGV[1], ARGV[2], ARGV[i])
  redis.call('XDEL', ARGV[1], ARGV[i])
end
return lost
