-- recover: active with an expired lease -> queued at its old place; a job that took its worker with it too often -> dead.
-- The execution is not counted as an attempt: crashes are counted apart.
-- ARGV: crashes that make a poison job, lease_s, the most dead letters that are kept (0, or left out: no limit)
-- Returns the keys of the jobs whose lease had expired, at most 1,000 a call.
local at, poison = now(), tonumber(ARGV[1])
contact(at, tonumber(ARGV[2]))
local expired = redis.call('ZRANGEBYSCORE', Q .. 'leases', '-inf', millis(at), 'LIMIT', 0, 1000)
for _, key in ipairs(expired) do
  local f = redis.call('HMGET', J .. key, 'prio', 'seq', 'body')
  redis.call('ZREM', Q .. 'leases', key)
  if f[1] then
    local crashes = redis.call('HINCRBY', J .. key, 'crash', 1)
    record('lost', key, at, f[3])
    redis.call('HINCRBY', J .. key, 'att', -1)
    count('lost')
    if crashes >= poison then
      redis.call('HSET', J .. key, 'tok', '', 'err', 'poison: its worker died ' .. crashes .. ' times')
      die(key, at, tonumber(ARGV[3] or '0'))
    else
      redis.call('HSET', J .. key, 'tok', '', 'at_r', text(at))
      line_up(key, f[1], f[2])
      tell(key, 'queued')
    end
  end
end
if #expired > 0 then wake() end
return expired
