-- Takes a stream's last id back to one that good ids can follow. KEYS: the stream. ARGV: group, id.
-- Only an empty stream: what still stands in it is greater, and is read and quarantined first.
if redis.call('XLEN', KEYS[1]) > 0 then
  return 0
end
redis.call('XSETID', KEYS[1], ARGV[2])
redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], ARGV[2])
return 1
