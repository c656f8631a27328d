-- record: an event goes into the history and to the live views, once; and who has subscribed is told.
-- KEYS: the history (a stream; field `event`: the envelope), a mark that the event is known, the counts (a hash), the
--       subscriptions (a hash by name; an empty value: has left)
-- ARGV: envelope, channel of the live views, s the mark stays, most events of the history, s they stay, field of the
--       counts; then name, subscription, … of this process, written down where nothing is written of them
-- Returns why the live views could not be told (else empty), and the whole hash of the subscriptions.
local unseen = ''
for n = 7, #ARGV, 2 do
  redis.call('HSETNX', KEYS[4], ARGV[n], ARGV[n + 1])
end
if redis.call('EXISTS', KEYS[2]) == 0 then
  local oldest = (tonumber(redis.call('TIME')[1]) - tonumber(ARGV[5])) * 1000
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], '*', 'event', ARGV[1])
  -- From here on it is known: what fails below must not make it be recorded twice, what failed above did not record it.
  redis.call('SET', KEYS[2], 1, 'EX', ARGV[3])
  redis.call('XTRIM', KEYS[1], 'MINID', '~', string.format('%.0f', math.max(oldest, 0)))
  redis.call('HINCRBY', KEYS[3], ARGV[6], 1)
  local shown = redis.pcall('PUBLISH', ARGV[2], ARGV[1])
  if type(shown) == 'table' and shown.err then
    unseen = shown.err
  end
end
return { unseen, redis.call('HGETALL', KEYS[4]) }
