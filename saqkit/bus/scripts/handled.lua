-- handled: a delivery's handler has ended well; it is counted once, however often that is said.
-- KEYS: a mark of the delivery, the counts (a hash)
-- ARGV: s the mark stays, field of the counts
if redis.call('SET', KEYS[1], 1, 'NX', 'EX', ARGV[1]) then
  redis.call('HINCRBY', KEYS[2], ARGV[2], 1)
end
