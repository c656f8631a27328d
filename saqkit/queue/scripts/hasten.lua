-- hasten: scheduled -> queued before its time, at the end of its line, because an operator wants it now.
-- ARGV: the keys, at most 1,000
-- Returns for each key 1, or 0 where it is not scheduled (any more).
local at, said, hastened = text(now()), {}, false
for i, key in ipairs(ARGV) do
  local f = redis.call('HMGET', J .. key, 'state', 'prio')
  said[i] = 0
  if f[1] == SCHEDULED then
    redis.call('ZREM', Q .. 'incomplete', ID .. key)
    redis.call('HSET', J .. key, 'at_r', at)
    line_up(key, f[2])
    said[i], hastened = 1, true
  end
end
if hastened then wake() end
return said
