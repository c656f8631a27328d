-- finish: active -> done.
-- ARGV for each job: key, token, body, ttl (s), row
-- Returns for each job 1 done, 0 refused (the claim is no longer held), 2 already done by this claim.
local at, said = now(), {}
for i = 1, #ARGV, 5 do
  local key, token, ttl = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 3])
  local held = holds(key, token, DONE)
  if held == 1 then
    record('done', key, at, ARGV[i + 4])
    redis.call('ZREM', Q .. 'leases', key)
    local keep = tonumber(redis.call('HGET', J .. key, 'keep') or '0')
    redis.call('HSET', J .. key, 'state', DONE, 'body', ARGV[i + 2])
    if keep > 0 then
      redis.call('HSET', J .. key, 'until', text(at + keep))
      if ttl ~= 0 then ttl = math.max(ttl, math.ceil(keep)) end
    end
    keep_for(key, ttl)
    count('complete')
    tell(key, 'complete')
  end
  said[#said + 1] = held
end
return said
