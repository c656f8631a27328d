-- handled: a delivery's handler has ended well; it is counted once, however often that is said.
-- KEYS: a mark of the delivery, the counts (a hash), the subscriptions (a hash by name; an empty value: has left)
-- ARGV: s the mark stays, field of the counts, name of the subscriber
if redis.call('SET', KEYS[1], 1, 'NX', 'EX', ARGV[1]) and redis.call('HGET', KEYS[3], ARGV[3]) ~= '' then
  redis.call('HINCRBY', KEYS[2], ARGV[2], 1)
end
