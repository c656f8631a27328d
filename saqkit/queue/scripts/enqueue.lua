-- enqueue: absent (or ended) -> queued, or -> scheduled where the job has a due time.
-- ARGV: tick, call (a name that is used once), the caller's clock,
--       then for each job: key, body, prio, due (on the caller's clock; 0: none), users, keep (s its key stays taken after it is done)
-- Returns for each job 1 (also where this very call is repeated), or 0 where a job of that key lives or is still kept.
local at, tick, call, clock, accepted, added = now(), tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), {}, false
for i = 4, #ARGV, 6 do
  local key, body, prio, due, users, keep = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3]), ARGV[i + 4], ARGV[i + 5]
  local name = call .. '.' .. i
  local old = redis.call('HMGET', J .. key, 'state', 'until', 'enq')
  local live = old[1] == QUEUED or old[1] == SCHEDULED or old[1] == ACTIVE
  if old[3] == name then
    accepted[#accepted + 1] = 1
  elseif live or (old[2] and tonumber(old[2]) > at) then
    accepted[#accepted + 1] = 0
  else
    if old[1] then
      if redis.call('ZREM', Q .. 'dead', key) == 1 then count('superseded') end
      redis.call('DEL', J .. key)
    end
    local fields = {'body', body, 'prio', prio, 'at_q', text(at), 'enq', name}
    if users ~= '0' then fields[#fields + 1] = 'users'; fields[#fields + 1] = users end
    if keep ~= '0' then fields[#fields + 1] = 'keep'; fields[#fields + 1] = keep end
    if due > 0 then
      -- So long from now, whatever the two clocks say: a producer whose clock is wrong delays by what it meant to.
      local wakes = due > clock and text(on_tick(at + due - clock, tick)) or text(at)
      redis.call('HSET', J .. key, 'state', SCHEDULED, 'at_r', wakes, unpack(fields))
      redis.call('ZADD', Q .. 'scheduled', wakes, key)
    else
      redis.call('HSET', J .. key, 'at_r', text(at), unpack(fields))
      line_up(key, prio)
    end
    accepted[#accepted + 1] = 1
    added = true
  end
end
if added then wake() end
return accepted
