-- forget: dead, done or cancelled -> absent: dead letters past their retention, or chosen ones (done and cancelled jobs expire
-- by themselves as well).
-- ARGV: retention in seconds: the dead letters that are older; or -1: these dead letters; or -2: these jobs, if done or cancelled;
--       then for each letter: key, when it died (empty: whenever); for each job: key, name of the call that enqueued it
-- Returns how many were removed; at most 1,000 a call.
local gone, at, which = {}, now(), tonumber(ARGV[1])
if which >= 0 then
  gone = redis.call('ZRANGEBYSCORE', Q .. 'dead', '-inf', text(at - which), 'LIMIT', 0, 1000)
  for _, key in ipairs(gone) do redis.call('ZREM', Q .. 'dead', key) end
  look_over_ids(1000, at)
elseif which == -1 then
  for i = 2, #ARGV, 2 do
    if take_letter(ARGV[i], ARGV[i + 1]) then gone[#gone + 1] = ARGV[i] end
  end
else
  for i = 2, #ARGV, 2 do
    local f = redis.call('HMGET', J .. ARGV[i], 'state', 'enq', 'until')
    local ended = (f[1] == DONE or f[1] == CANCELLED) and (f[2] or '') == ARGV[i + 1]
    if ended and tonumber(f[3] or '0') <= at then gone[#gone + 1] = ARGV[i] end -- else its key stays taken
  end
end
for _, key in ipairs(gone) do
  if which >= -1 then leaves_batch(key) end
  redis.call('DEL', J .. key)
end
if #gone > 0 and which >= -1 then count(which >= 0 and 'dead_expired' or 'dead_purged', #gone) end
return #gone
