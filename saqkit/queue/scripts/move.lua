-- move: dead -> outgoing, on the way into another queue (see deliver.lua). Happens once for each death.
-- ARGV: name of the other queue, then for each letter: key, when it died (empty: whenever), body there, its users,
--       name of the delivery
-- Returns for each key 1, or 0 where it is no dead letter, or has died again since.
local said = {}
for i = 2, #ARGV, 5 do
  local key = ARGV[i]
  local died = redis.call('EXISTS', J .. key) == 1 and take_letter(key, ARGV[i + 1])
  if died then
    redis.call('HSET', J .. key, 'state', OUTGOING, 'to', ARGV[1], 'to_body', ARGV[i + 2], 'to_users', ARGV[i + 3],
               'move', ARGV[i + 4])
    redis.call('ZADD', Q .. 'outgoing', died, key)
  end
  said[#said + 1] = died and 1 or 0
end
return said
