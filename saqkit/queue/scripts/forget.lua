-- forget: dead -> absent, for dead letters that died before a time (done and cancelled jobs expire by themselves).
-- ARGV: retention in seconds, or -1 for "these", then keys
-- Returns how many were removed; at most 1,000 a call.
local gone = {}
if tonumber(ARGV[1]) >= 0 then
  gone = redis.call('ZRANGEBYSCORE', Q .. 'dead', '-inf', text(now() - tonumber(ARGV[1])), 'LIMIT', 0, 1000)
else
  for i = 2, #ARGV do
    if redis.call('ZSCORE', Q .. 'dead', ARGV[i]) then gone[#gone + 1] = ARGV[i] end
  end
end
for _, key in ipairs(gone) do
  redis.call('ZREM', Q .. 'dead', key)
  redis.call('DEL', J .. key)
end
return #gone
