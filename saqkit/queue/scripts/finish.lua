-- finish: active -> done. In the same step the jobs that follow it are queued, or put on their way into their queues.
-- ARGV for each job: key, token, body, ttl (s; and behind a blank, if any: how many jobs follow), row,
--       then for each that follows: its queue (empty: this one), key, body, prio, users, keep (as in enqueue.lua)
-- Returns for each job 1 done (3: and something is on its way into another queue), 0 refused (the claim is no longer held),
-- 2 already done by this claim.
local at, said, ended, done, i = now(), {}, {}, {}, 1
while i <= #ARGV do
  local key, token, ttl, followers = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 3]), 0
  if not ttl then
    ttl, followers = string.match(ARGV[i + 3], '^(%S+) (%d+)$')
    ttl, followers = tonumber(ttl), tonumber(followers)
  end
  local held, keep, run, member = holds(key, token, DONE)
  if held == 1 then
    record('done', key, at, ARGV[i + 4])
    stop_running(key, run)
    ended[#ended + 1] = key
    if keep then
      redis.call('HSET', J .. key, 'state', DONE, 'body', ARGV[i + 2], 'until', text(at + tonumber(keep)))
      if ttl ~= 0 then ttl = math.max(ttl, math.ceil(tonumber(keep))) end
    elseif ttl >= 0 then
      redis.call('HSET', J .. key, 'state', DONE, 'body', ARGV[i + 2])
    end
    keep_for(key, ttl)
    done[#done + 1] = key
    if #ended == 1000 then leave(ended, 'complete') ended = {} end
    posted = false
    if followers > 0 or member then following() end
    for n = 1, followers do
      local first = i + 6 * n - 1
      start(at, token .. '.' .. n, unpack(ARGV, first, first + 5))
    end
    if member then ends_in_batch(member, 'done', at) end
    if posted then held = 3 end
  end
  said[#said + 1] = held
  i = i + 5 + 6 * followers
end
leave(ended, 'complete')
for _, key in ipairs(done) do tell(key, 'complete') end
return said
