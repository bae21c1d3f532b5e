-- Takes values off the online store whose rows were refused, and puts the newest durable ones in
-- their place. Values that are newer by now stay.
-- ARGV: namespace, generation, then for each: entity, feature, refused version (64 hexadecimal
-- digits, without the token), the entity's new field or nothing, and for the feature over all
-- entities value, timestamp, entity, version, or nothing. Answers 'OK' or 'GENERATION'.
local ns = ARGV[1]
if redis.call('GET', ns .. ':generation') ~= ARGV[2] then
  return 'GENERATION'
end
for at = 3, #ARGV, 8 do
  local feature, refused = ARGV[at + 1], ARGV[at + 2]
  local key = ns .. ':entity:' .. ARGV[at]
  local stored = redis.call('HGET', key, feature)
  if stored and string.sub(stored, -72, -9) == refused then
    if ARGV[at + 3] ~= '' then
      redis.call('HSET', key, feature, ARGV[at + 3])
    else
      redis.call('HDEL', key, feature)
    end
  end
  key = ns .. ':feature:' .. feature
  stored = redis.call('HGET', key, 'version')
  if stored and string.sub(stored, 1, 64) == refused then
    if ARGV[at + 7] ~= '' then
      redis.call('HSET', key, 'value', ARGV[at + 4], 'timestamp', ARGV[at + 5],
        'entity_id', ARGV[at + 6], 'version', ARGV[at + 7])
    else
      redis.call('DEL', key)
    end
  end
end
return 'OK'
