-- Writes the newest values of one part of a batch; all of them or none.
-- ARGV: namespace, generation, source (empty: the store, which needs no token), token, promise (JSON),
-- whether all positions before the part are durable (1 or 0), number of values, then for each value:
-- entity, feature, value, event timestamp, version (72 hexadecimal digits whose order is the version
-- order). Answers 'OK', 'FENCED' (another owner), 'EARLY' (the promise of another script version
-- stands) or 'GENERATION' (Redis lost everything).
local ns = ARGV[1]
if redis.call('GET', ns .. ':generation') ~= ARGV[2] then
  return 'GENERATION'
end
if ARGV[3] ~= '' then
  if redis.call('HGET', ns .. ':tokens', ARGV[3]) ~= ARGV[4] then
    return 'FENCED'
  end
  -- Parts are written as they are done, not in order: under one script a promise never shrinks, and
  -- another script begins only when all before it is durable.
  local known = redis.call('HGET', ns .. ':promised', ARGV[3])
  local old, new = known and cjson.decode(known), cjson.decode(ARGV[5])
  local same = old and old.script_sha256 == new.script_sha256
  if not same and ARGV[6] ~= '1' then
    return 'EARLY'
  end
  if not same or old.to < new.to then
    redis.call('HSET', ns .. ':promised', ARGV[3], ARGV[5])
  end
end
local newest = {}
local at = 8
for _ = 1, tonumber(ARGV[7]) do
  local feature, version = ARGV[at + 1], ARGV[at + 4]
  local key = ns .. ':entity:' .. ARGV[at]
  local stored = redis.call('HGET', key, feature)
  if not stored or string.sub(stored, -72) < version then
    redis.call('HSET', key, feature, ARGV[at + 2] .. '|' .. ARGV[at + 3] .. '|' .. version)
  end
  if not newest[feature] or ARGV[newest[feature] + 4] < version then
    newest[feature] = at
  end
  at = at + 5
end
for feature, i in pairs(newest) do
  local key = ns .. ':feature:' .. feature
  local stored = redis.call('HGET', key, 'version')
  if not stored or stored < ARGV[i + 4] then
    redis.call('HSET', key, 'value', ARGV[i + 2], 'timestamp', ARGV[i + 3],
      'entity_id', ARGV[i], 'version', ARGV[i + 4])
  end
end
return 'OK'
