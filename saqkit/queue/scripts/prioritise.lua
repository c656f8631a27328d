-- prioritise: queued or scheduled, with another level: a queued job joins the end of its line.
-- ARGV: key, level
-- Returns {1 done (or it has that level), 0 not, the state it is in, 0 for none}.
local key, prio = ARGV[1], ARGV[2]
local f = redis.call('HMGET', J .. key, 'state', 'prio', 'grp')
local done = f[1] == QUEUED or f[1] == SCHEDULED
if done and f[2] ~= prio then
  redis.call('HSET', J .. key, 'prio', prio)
  if f[1] == QUEUED then
    unline(key, f[2], f[3])
    line_up(key, prio)
    wake()
  end
end
return {done and 1 or 0, tonumber(f[1] or '0')}
