-- reassert: who is subscribed by a process is written down where nothing is written of them.
-- KEYS: the subscriptions (a hash by name; an empty value: has left)
-- ARGV: name, subscription, name, subscription, …
-- Returns the whole hash.
for n = 1, #ARGV, 2 do
  redis.call('HSETNX', KEYS[1], ARGV[n], ARGV[n + 1])
end
return redis.call('HGETALL', KEYS[1])
