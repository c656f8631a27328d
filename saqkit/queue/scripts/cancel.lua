-- cancel: queued, scheduled or active -> cancelled. A worker that has it learns so when it asks, and is refused later.
-- ARGV for each job: key, reason, ttl (s), token (the holder cancels its own attempt; else empty), row
-- Returns for each job the state it was in, or 0 where it was not live.
local at, said = now(), {}
for i = 1, #ARGV, 5 do
  local key, token = ARGV[i], ARGV[i + 3]
  local f = redis.call('HMGET', J .. key, 'state', 'prio', 'tok', 'body')
  local live = f[1] == QUEUED or f[1] == SCHEDULED or (f[1] == ACTIVE and (token == '' or token == f[3]))
  if live then
    if f[1] == ACTIVE then record('cancelled', key, at, token ~= '' and ARGV[i + 4] or f[4]) end
    redis.call('ZREM', Q .. 'queued:' .. f[2], key)
    redis.call('ZREM', Q .. 'scheduled', key)
    redis.call('ZREM', Q .. 'leases', key)
    redis.call('HSET', J .. key, 'state', CANCELLED, 'err', ARGV[i + 1])
    keep_for(key, tonumber(ARGV[i + 2]))
    count('aborted')
    tell(key, 'aborted')
  end
  said[#said + 1] = live and tonumber(f[1]) or 0
end
return said
