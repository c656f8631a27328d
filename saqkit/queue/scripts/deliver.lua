-- deliver: outgoing -> absent, once the other queue has accepted the job; outgoing -> dead, if a job of its key lives there.
-- What follows a job is only on its way here, and is gone in either case.
-- ARGV for each letter: key, name of the delivery, what the other queue said (1 accepted, 0 refused)
-- Returns for each key 1 delivered, 0 dead again (or not needed), 2 somebody else has settled it.
local said = {}
for i = 1, #ARGV, 3 do
  local key, done = ARGV[i], 2
  local died = redis.call('ZSCORE', Q .. 'outgoing', key)
  local name, follows = unpack(redis.call('HMGET', J .. key, 'move', 'to_key'), 1, 2)
  if died and (not name or name == ARGV[i + 1]) then
    redis.call('ZREM', Q .. 'outgoing', key)
    if follows then
      redis.call('DEL', J .. key)
      done = tonumber(ARGV[i + 2])
    elseif not name or ARGV[i + 2] == '1' then
      leaves_batch(key)
      redis.call('DEL', J .. key)
      count('dead_moved')
      done = 1
    else
      redis.call('HDEL', J .. key, 'to', 'to_body', 'to_users', 'move')
      redis.call('HSET', J .. key, 'state', DEAD)
      redis.call('ZADD', Q .. 'dead', died, key)
      done = 0
    end
  end
  said[#said + 1] = done
end
return said
