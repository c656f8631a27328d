-- renew: the holder of a claim extends its lease. No transition.
-- ARGV: lease_s, then for each job: key, token
-- Returns for each job 1 extended, 0 no longer held.
local at, lease, said = now(), tonumber(ARGV[1]), {}
contact(at, lease)
for i = 2, #ARGV, 2 do
  local job = redis.call('HMGET', J .. ARGV[i], 'state', 'tok')
  local held = job[1] == ACTIVE and job[2] == ARGV[i + 1]
  if held then redis.call('ZADD', Q .. 'leases', millis(at + lease), ARGV[i]) end
  said[#said + 1] = held and 1 or 0
end
return said
