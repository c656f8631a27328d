-- forget: dead -> absent, for dead letters past their retention, or chosen ones (done and cancelled jobs expire by themselves).
-- ARGV: retention in seconds, or -1 for "these", then for each letter: key, when it died (empty: whenever)
-- Returns how many were removed; at most 1,000 a call.
local gone, old = {}, tonumber(ARGV[1]) >= 0
if old then
  gone = redis.call('ZRANGEBYSCORE', Q .. 'dead', '-inf', text(now() - tonumber(ARGV[1])), 'LIMIT', 0, 1000)
  for _, key in ipairs(gone) do redis.call('ZREM', Q .. 'dead', key) end
else
  for i = 2, #ARGV, 2 do
    if take_letter(ARGV[i], ARGV[i + 1]) then gone[#gone + 1] = ARGV[i] end
  end
end
for _, key in ipairs(gone) do redis.call('DEL', J .. key) end
if #gone > 0 then count(old and 'dead_expired' or 'dead_purged', #gone) end
return #gone
