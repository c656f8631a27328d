-- recover: active with an expired lease -> queued at its old place; a job that took its worker with it too often -> dead.
-- The execution is not counted as an attempt: crashes are counted apart.
-- ARGV: crashes that make a poison job, lease_s, the most dead letters that are kept (0, or left out: no limit)
-- Returns the keys of the jobs whose lease had expired, at most 1,000 a call.
local at, poison = now(), tonumber(ARGV[1])
contact(at, tonumber(ARGV[2]))
local expired = redis.call('ZRANGEBYSCORE', Q .. 'leases', '-inf', millis(at), 'LIMIT', 0, 1000)
for _, key in ipairs(expired) do
  local f = redis.call('HMGET', J .. key, 'prio', 'seq', 'body', 'run', 'batch', 'state')
  redis.call('ZREM', Q .. 'leases', key)
  if f[6] == ACTIVE then -- else nobody holds it: only its lease was left
    local crashes = redis.call('HINCRBY', J .. key, 'crash', 1)
    record('lost', key, at, f[3])
    stop_running(key, f[4])
    redis.call('HINCRBY', J .. key, 'att', -1)
    count('lost')
    if crashes >= poison then
      redis.call('HSET', J .. key, 'tok', '', 'err', 'poison: its worker died ' .. crashes .. ' times')
      die(key, at, tonumber(ARGV[3] or '0'))
      following()
      ends_in_batch(f[5], 'dead', at)
    else
      redis.call('HSET', J .. key, 'tok', '', 'at_r', text(at))
      line_up(key, f[1], f[2])
      tell(key, 'queued')
    end
  elseif not f[6] and arranged() then -- somebody deleted the job's hash by hand, and with it what it was counted as
    recount()
    unpark_all()
  end
end
if #expired > 0 then wake() end
return expired
