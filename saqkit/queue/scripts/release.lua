-- release: active -> queued at its old place, with the attempt refunded (a worker that stops gives its jobs back).
-- ARGV for each job: key, token, body (empty: as it was), row
-- Returns for each job 1 done, 0 refused, 2 already done by this claim.
local at, said = now(), {}
for i = 1, #ARGV, 4 do
  local key, token, body = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local held, _, run = holds(key, token, QUEUED)
  if held == 1 then
    record('released', key, at, ARGV[i + 3])
    stop_running(key, run)
    redis.call('ZREM', Q .. 'leases', key)
    local f = redis.call('HMGET', J .. key, 'prio', 'seq')
    redis.call('HINCRBY', J .. key, 'att', -1)
    redis.call('HINCRBY', J .. key, 'rel', 1)
    redis.call('HSET', J .. key, 'at_r', text(at))
    if body ~= '' then redis.call('HSET', J .. key, 'body', body) end
    line_up(key, f[1], f[2])
    wake()
    count('released')
    tell(key, 'queued')
  end
  said[#said + 1] = held
end
return said
