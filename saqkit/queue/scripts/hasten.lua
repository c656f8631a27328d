-- hasten: scheduled -> queued before its time, at the end of its line, because an operator wants it now.
-- ARGV for each job, at most 1,000: key, name of the call that enqueued it (left out or empty: whichever; else a later job of
--       the same key is left alone)
-- Returns for each job 1, or 0 where it is not scheduled (any more).
local at, said, hastened = text(now()), {}, false
for i = 1, #ARGV, 2 do
  local key, call, done = ARGV[i], ARGV[i + 1] or '', 0
  local f = redis.call('HMGET', J .. key, 'state', 'prio', 'enq')
  if f[1] == SCHEDULED and (call == '' or call == f[3]) then
    redis.call('ZREM', Q .. 'incomplete', ID .. key)
    redis.call('HSET', J .. key, 'at_r', at)
    line_up(key, f[2])
    done, hastened = 1, true
  end
  said[#said + 1] = done
end
if hastened then wake() end
return said
