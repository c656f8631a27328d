-- cancel: queued, scheduled or active -> cancelled. A worker that has it learns so when it asks, and is refused later.
-- The key of a job that was running stays taken until its worker has stopped it, or the grace is over, so that no second
-- copy runs beside it.
-- ARGV for each job: key, reason, ttl (s), token (the holder ends its own attempt; else empty), row,
--       grace (s; below 0: only if it waits, one that runs is left alone), name of the call that enqueued it (left out or
--       empty: whichever; else a later job of the same key is left alone)
-- Returns for each job the state it was in, or 0 where it was not live.
local at, said = now(), {}
for i = 1, #ARGV, 7 do
  local key, ttl, token, grace = ARGV[i], tonumber(ARGV[i + 2]), ARGV[i + 3], tonumber(ARGV[i + 5])
  local call = ARGV[i + 6] or ''
  local f = redis.call('HMGET', J .. key, 'state', 'prio', 'tok', 'body', 'grp', 'run', 'batch', 'enq')
  if call ~= '' and call ~= f[8] then f = {false} end
  local was = 0
  local waits = f[1] == QUEUED or f[1] == SCHEDULED -- then nobody holds it: a late token may not cancel it
  local again = string.sub(token, -1) == '?' -- said again, as the answer was lost: see `holds` in keys.lua
  if again then token = string.sub(token, 1, -2) end
  local stops = f[1] == ACTIVE and (token == f[3] or (token == '' and grace >= 0))
  if (waits and token == '') or stops then
    was = tonumber(f[1])
    if f[1] == ACTIVE then record('cancelled', key, at, token ~= '' and ARGV[i + 4] or f[4]) end
    unline(key, f[2], f[5])
    stop_running(key, f[6])
    redis.call('ZREM', Q .. 'incomplete', ID .. key)
    redis.call('ZREM', Q .. 'leases', key)
    redis.call('HSET', J .. key, 'state', CANCELLED, 'err', ARGV[i + 1], 'at_e', text(at))
    if f[1] == ACTIVE and token == '' then
      redis.call('HSET', J .. key, 'until', text(at + grace))
      if grace > 0 then redis.call('SET', Q .. 'aborted:' .. key, ARGV[i + 1], 'PX', math.ceil(grace * 1000)) end
      if grace > 0 and ttl ~= 0 then ttl = math.max(ttl, math.ceil(grace)) end
    end
    keep_for(key, ttl)
    count('aborted')
    tell(key, 'aborted')
    following()
    ends_in_batch(f[7], 'cancelled', at)
  elseif f[1] == CANCELLED and token ~= '' and token == f[3] then
    was = tonumber(f[1])
    redis.call('HDEL', J .. key, 'until')
    keep_for(key, ttl)
  elseif again and not f[1] then
    was = tonumber(ACTIVE)
  elseif token ~= '' and f[1] then
    count('fenced')
  end
  said[#said + 1] = was
end
return ARGV[4] == '' and untold or said -- an operator hears of it; whoever holds the job has ended it
