-- record: an event goes into the history and to the live views, once; and who has subscribed is told.
-- KEYS: the history (a stream; field `event`: the envelope), a mark that the event is known, the counts (a hash), the
--       subscriptions (a hash by name)
-- ARGV: envelope, channel of the live views, s the mark stays, most events of the history, s they stay, field of the counts
-- Returns the subscriptions.
if redis.call('SET', KEYS[2], 1, 'NX', 'EX', ARGV[3]) then
  local oldest = (tonumber(redis.call('TIME')[1]) - tonumber(ARGV[5])) * 1000
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], '*', 'event', ARGV[1])
  redis.call('XTRIM', KEYS[1], 'MINID', '~', string.format('%.0f', math.max(oldest, 0)))
  redis.call('HINCRBY', KEYS[3], ARGV[6], 1)
  redis.call('PUBLISH', ARGV[2], ARGV[1])
end
return redis.call('HVALS', KEYS[4])
