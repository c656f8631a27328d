-- bury: active -> dead. The dead letter is written in the same step that fails the job.
-- ARGV: the most dead letters that are kept (0, or left out: no limit),
--       then for each job: key, token, body (empty: as it was), error (empty: in the body), row
-- Returns for each job 1 done (3: and something is on its way into another queue), 0 refused, 2 already done by this claim.
local first = #ARGV % 5 + 1
local at, cap, said = now(), first == 2 and tonumber(ARGV[1]) or 0, {}
for i = first, #ARGV, 5 do
  local key, token, body, err = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local held, _, run, member = holds(key, token, DEAD)
  if held == 1 then
    record('dead', key, at, ARGV[i + 4])
    stop_running(key, run)
    redis.call('ZREM', Q .. 'leases', key)
    if body ~= '' then redis.call('HSET', J .. key, 'body', body) end
    if err ~= '' then redis.call('HSET', J .. key, 'err', err) end
    die(key, at, cap)
    posted = false
    following()
    ends_in_batch(member, 'dead', at)
    if posted then held = 3 end
  end
  said[#said + 1] = held
end
return said
