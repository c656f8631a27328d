-- replay: dead -> queued with all its attempts before it, at the end of the line. Happens once for each death.
-- ARGV for each letter: key, when it died (empty: whenever), body (empty: as it was), users (of that body)
-- Returns for each key 1, or 0 where it is no dead letter, or has died again since.
local at, said = now(), {}
for i = 1, #ARGV, 4 do
  local key, body, replayed = ARGV[i], ARGV[i + 2] or '', 0
  local prio, member = unpack(redis.call('HMGET', J .. key, 'prio', 'batch'), 1, 2)
  if take_letter(key, ARGV[i + 1]) and prio then
    redis.call('HDEL', J .. key, 'att', 'crash', 'err', 'tok')
    redis.call('HSET', J .. key, 'at_r', text(at))
    if body ~= '' then redis.call('HSET', J .. key, 'body', body, 'users', ARGV[i + 3]) end
    following()
    returns_to_batch(member, key)
    line_up(key, prio)
    count('dead_replayed')
    tell(key, 'queued')
    wake()
    replayed = 1
  end
  said[#said + 1] = replayed
end
return said
