-- turns: when the next sends to a provider may begin, so that in any window of one period at most `limit` of them do.
-- KEYS[1] zset: the turns that are in the window or still to come; score = when each leaves it, member = its number
-- KEYS[2] string: the number of the last turn
-- ARGV: limit, period_s, slack_s (how long after its turn a send of the caller may begin), how many turns,
--       numbers of turns that nobody took, which are given back
-- Returns the number before the first of the turns, and for each the seconds until it comes, on the server's clock.
local t = redis.call('TIME')
local at = tonumber(t[1]) + tonumber(t[2]) / 1e6
local limit, stays, many = tonumber(ARGV[1]), tonumber(ARGV[2]) + tonumber(ARGV[3]), tonumber(ARGV[4])
local number, leaves = redis.call('INCRBY', KEYS[2], many) - many, at
local said = {number}
for n = 5, #ARGV do redis.call('ZREM', KEYS[1], ARGV[n]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', at))
for n = 1, many do
  -- A turn comes as soon as fewer than `limit` of those before it are still in the window.
  local turn, before = at, redis.call('ZRANGE', KEYS[1], -limit, -limit, 'WITHSCORES')
  if before[2] then turn = math.max(at, tonumber(before[2])) end
  leaves = math.max(leaves, turn + stays)
  redis.call('ZADD', KEYS[1], string.format('%.6f', turn + stays + 5e-7), number + n)
  said[n + 1] = string.format('%.6f', turn - at)
end
-- Others may have asked for more slack: what they put in leaves later than `leaves`.
local kept = math.max(math.ceil((leaves - at + stays) * 1000), redis.call('PTTL', KEYS[1]))
redis.call('PEXPIRE', KEYS[1], kept)
redis.call('PEXPIRE', KEYS[2], kept)
return said
