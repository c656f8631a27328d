-- update: the body of a job that is live, by the last who held it, or by somebody who never did. No transition.
-- ARGV: key, token (empty: not the holder), body
-- Returns 1, or 0 where it was refused.
local f = redis.call('HMGET', J .. ARGV[1], 'state', 'tok')
local live = f[1] == QUEUED or f[1] == SCHEDULED or f[1] == ACTIVE
if not live or (ARGV[2] ~= '' and f[2] ~= ARGV[2]) then return 0 end
redis.call('HSET', J .. ARGV[1], 'body', ARGV[3])
tell(ARGV[1], f[1] == ACTIVE and 'active' or 'queued')
return untold or 1
