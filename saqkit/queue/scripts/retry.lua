-- retry: active -> scheduled for its delay, until the next tick; without a delay -> queued, at the end of the line.
-- ARGV: tick, then for each job: key, token, body, delay (s), row
-- Returns for each job 1 done, 0 refused, 2 already done by this claim.
local at, tick, said = now(), tonumber(ARGV[1]), {}
for i = 2, #ARGV, 5 do
  local key, token, delay = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 3])
  local held, _, run = holds(key, token, SCHEDULED, QUEUED)
  if held == 1 then
    record('retry', key, at, ARGV[i + 4])
    stop_running(key, run)
    redis.call('ZREM', Q .. 'leases', key)
    if delay > 0 then
      redis.call('HSET', J .. key, 'state', SCHEDULED, 'body', ARGV[i + 2], 'at_r', text(on_tick(at + delay, tick)))
      redis.call('ZADD', Q .. 'incomplete', text(at + delay), ID .. key)
    else
      redis.call('HSET', J .. key, 'body', ARGV[i + 2], 'at_r', text(at))
      line_up(key, redis.call('HGET', J .. key, 'prio'))
    end
    wake()
    count('retried')
    tell(key, 'queued')
  end
  said[#said + 1] = held
end
return said
