-- replay: dead -> queued with all its attempts before it, at the end of the line. Happens once.
-- ARGV: keys
-- Returns for each key 1, or 0 where it is no dead letter.
local at, said = now(), {}
for i = 1, #ARGV do
  local key = ARGV[i]
  local was = redis.call('ZREM', Q .. 'dead', key)
  local prio = redis.call('HGET', J .. key, 'prio')
  if was == 1 and prio then
    redis.call('HDEL', J .. key, 'att', 'crash', 'err', 'tok')
    redis.call('HSET', J .. key, 'at_r', text(at))
    line_up(key, prio)
    tell(key, 'queued')
    wake()
  end
  said[#said + 1] = prio and was or 0
end
return said
