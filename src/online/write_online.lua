-- Writes newest values of one part of a batch; all of them or none.
-- ARGV: namespace, generation, source (empty: the store, which needs no token), token, promise (JSON),
-- whether all positions before the part are durable (1 or 0), number of features; for each feature the
-- newest value over all entities: feature, entity, value, event timestamp, version; then up to the end,
-- for each entity: entity, number n of its values, n features, n fields. A field is
-- 'value|event timestamp|version'; a version is 72 hexadecimal digits whose order is the version order.
-- Answers 'OK', 'FENCED' (another owner), 'EARLY' (the promise of another script version stands) or
-- 'GENERATION' (Redis lost everything).
local ns = ARGV[1]
local call, sub = redis.call, string.sub
if call('GET', ns .. ':generation') ~= ARGV[2] then
  return 'GENERATION'
end
if ARGV[3] ~= '' then
  if call('HGET', ns .. ':tokens', ARGV[3]) ~= ARGV[4] then
    return 'FENCED'
  end
  -- Parts are written as they are done, not in order: under one script a promise never shrinks, and
  -- another script begins only when all before it is durable.
  local known = call('HGET', ns .. ':promised', ARGV[3])
  local old, new = known and cjson.decode(known), cjson.decode(ARGV[5])
  local same = old and old.script_sha256 == new.script_sha256
  if not same and ARGV[6] ~= '1' then
    return 'EARLY'
  end
  if not same or old.to < new.to then
    call('HSET', ns .. ':promised', ARGV[3], ARGV[5])
  end
end
local at = 8
for _ = 1, tonumber(ARGV[7]) do
  local key, version = ns .. ':feature:' .. ARGV[at], ARGV[at + 4]
  local stored = call('HGET', key, 'version')
  if not stored or stored < version then
    call('HSET', key, 'value', ARGV[at + 2], 'timestamp', ARGV[at + 3],
      'entity_id', ARGV[at + 1], 'version', version)
  end
  at = at + 5
end
local prefix, last = ns .. ':entity:', #ARGV
while at < last do
  local key, n = prefix .. ARGV[at], tonumber(ARGV[at + 1])
  if n == 1 then
    local feature, field = ARGV[at + 2], ARGV[at + 3]
    local stored = call('HGET', key, feature)
    if not stored or sub(stored, -72) < sub(field, -72) then
      call('HSET', key, feature, field)
    end
  else
    local stored = call('HMGET', key, unpack(ARGV, at + 2, at + 1 + n))
    local newer, size = {}, 0
    for i = 1, n do
      local field = ARGV[at + 1 + n + i]
      if not stored[i] or sub(stored[i], -72) < sub(field, -72) then
        newer[size + 1], newer[size + 2] = ARGV[at + 1 + i], field
        size = size + 2
      end
    end
    if size > 0 then
      call('HSET', key, unpack(newer))
    end
  end
  at = at + 2 + 2 * n
end
return 'OK'
