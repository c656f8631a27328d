-- finish: active -> done.
-- ARGV for each job: key, token, body, ttl (s), row
-- Returns for each job 1 done, 0 refused (the claim is no longer held), 2 already done by this claim.
local at, said, ended = now(), {}, {}
for i = 1, #ARGV, 5 do
  local key, token, ttl = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 3])
  local held, keep = holds(key, token, DONE)
  if held == 1 then
    record('done', key, at, ARGV[i + 4])
    ended[#ended + 1] = key
    if keep then
      redis.call('HSET', J .. key, 'state', DONE, 'body', ARGV[i + 2], 'until', text(at + tonumber(keep)))
      if ttl ~= 0 then ttl = math.max(ttl, math.ceil(tonumber(keep))) end
    elseif ttl >= 0 then
      redis.call('HSET', J .. key, 'state', DONE, 'body', ARGV[i + 2])
    end
    keep_for(key, ttl)
    tell(key, 'complete')
    if #ended == 1000 then leave(ended, 'complete') ended = {} end
  end
  said[#said + 1] = held
end
leave(ended, 'complete')
return said
