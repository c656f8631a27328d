-- bury: active -> dead. The dead letter is written in the same step that fails the job.
-- ARGV for each job: key, token, body, row
-- Returns for each job 1 done, 0 refused, 2 already done by this claim.
local at, said = now(), {}
for i = 1, #ARGV, 4 do
  local key, token = ARGV[i], ARGV[i + 1]
  local held = holds(key, token, DEAD)
  if held == 1 then
    record('dead', key, at, ARGV[i + 3])
    redis.call('ZREM', Q .. 'leases', key)
    redis.call('HSET', J .. key, 'state', DEAD, 'body', ARGV[i + 2])
    redis.call('ZADD', Q .. 'dead', text(at), key)
    count('failed')
    tell(key, 'failed')
  end
  said[#said + 1] = held
end
return said
