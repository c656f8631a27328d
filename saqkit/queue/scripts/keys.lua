-- The key schema of a queue, and the words that the transitions share. Put in front of every script.
--
-- KEYS[1] = Q = "saq:{name}:"       KEYS[2] = J = "saq:job:{name}:"      (one hash tag: one slot of a cluster)
--
-- | key             | type   | holds                                                                               |
-- |-----------------|--------|-------------------------------------------------------------------------------------|
-- | Q queued:1..4   | zset   | waiting jobs of a priority level; score = place in the line (from Q seq)              |
-- | Q scheduled     | zset   | delayed jobs and retries; score = when they wake, on the queue's tick                 |
-- | Q leases        | zset   | active jobs; score = when the claim expires unless it is renewed                      |
-- | Q dead          | zset   | dead letters; score = when the job died                                               |
-- | Q seq           | string | counter: places in the line and fencing tokens                                        |
-- | Q wake          | list   | at most one element: "there is something to take", popped by one blocked process      |
-- | Q window        | zset   | rate limit: admitted weight; score = when it leaves the window, member = seq:weight   |
-- | Q weight        | string | rate limit: sum of the weights in Q window                                            |
-- | Q taken:<who>   | string | what the last `take` of a process gave it, so that asking again gives the same        |
-- | Q alive         | string | when a process was last heard of: if long ago, the server was away (see `contact`)    |
-- | Q paused        | string | while it exists, nothing is taken                                                     |
-- | Q counts        | hash   | complete, failed, retried, aborted, lost, released, fenced, superseded                |
-- | Q recording     | string | while it exists, every attempt that ends is appended to Q trace                       |
-- | Q trace         | list   | ended attempts, a JSON array each (see `record`)                                      |
-- | J <key>         | hash   | a job: body (JSON), state (number of the life-cycle), prio, seq, att, crash, users,   |
-- |                 |        | at_q, at_r, at_t (first enqueued, ready, taken), tok, worker, keep, until, err, enq   |
--
-- All times are seconds of the server's own clock.
local Q, J = KEYS[1], KEYS[2]
local QUEUED, SCHEDULED, ACTIVE, DONE, DEAD, CANCELLED = '1', '2', '3', '4', '5', '6'

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1e6
end

local function text(seconds)
  return string.format('%.6f', seconds)
end

local function on_tick(due, tick)
  local turns = due / tick
  return math.ceil(turns - 1e-9 - 1e-15 * turns) * tick  -- what is on the grid but for rounding stays there
end

local function wake()
  if redis.call('LLEN', Q .. 'wake') == 0 then redis.call('RPUSH', Q .. 'wake', '1') end
end

-- Every process speaks at least each third of a lease. If nobody has for half of one, the server was away (or they all
-- are gone): no lease ran meanwhile, so that the living can renew before anybody recovers what they hold.
local function contact(at, lease)
  local last = tonumber(redis.call('GET', Q .. 'alive') or at)
  if at - last > lease / 2 then
    local extended = text(at + lease * 2 / 3)
    for _, key in ipairs(redis.call('ZRANGEBYSCORE', Q .. 'leases', '-inf', extended)) do
      redis.call('ZADD', Q .. 'leases', extended, key)
    end
  end
  redis.call('SET', Q .. 'alive', text(at))
end

-- Put a job in its level's line; `seq` keeps an old place, none gives the last.
local function line_up(key, prio, seq)
  seq = seq or redis.call('INCR', Q .. 'seq')
  redis.call('ZADD', Q .. 'queued:' .. prio, seq, key)
  redis.call('HSET', J .. key, 'state', QUEUED, 'seq', seq)
end

-- Delayed jobs whose time has come join the line, at most 1,000 a call, so that the server is never held up.
local function promote(at)
  local due = redis.call('ZRANGEBYSCORE', Q .. 'scheduled', '-inf', text(at), 'LIMIT', 0, 1000)
  for _, key in ipairs(due) do
    redis.call('ZREM', Q .. 'scheduled', key)
    local prio = redis.call('HGET', J .. key, 'prio')
    if prio then line_up(key, prio) end
  end
  return due
end

-- Whether `token` is the claim that may change the job now: 1 yes, 0 no (counted), 2 this very change is already made
-- (also where the job is gone: it may have been kept for no time at all).
local function holds(key, token, target, later)
  local job = redis.call('HMGET', J .. key, 'state', 'tok')
  if job[1] == ACTIVE and job[2] == token then return 1 end
  if not job[1] or (job[2] == token and (job[1] == target or job[1] == later)) then return 2 end
  redis.call('HINCRBY', Q .. 'counts', 'fenced', 1)
  return 0
end

-- Append an attempt that ended to the trace. `row` is what the worker knows of it (JSON), or the job's body.
local function record(outcome, key, at, row)
  if redis.call('EXISTS', Q .. 'recording') == 0 then return end
  local f = redis.call('HMGET', J .. key, 'att', 'crash', 'prio', 'at_q', 'at_r', 'at_t', 'worker')
  for i = 1, 7 do f[i] = f[i] or '0' end
  redis.call('RPUSH', Q .. 'trace',
    cjson.encode({outcome, key, text(at), f[1], f[2], f[3], f[4], f[5], f[6], f[7], row}))
end

local function count(what)
  redis.call('HINCRBY', Q .. 'counts', what, 1)
end

local function tell(key, status)
  redis.call('PUBLISH', J .. key, status)
end

-- How long an ended job can still be looked up: ttl > 0 seconds, 0 for ever, -1 not at all.
local function keep_for(key, ttl)
  if ttl < 0 then redis.call('DEL', J .. key)
  elseif ttl > 0 then redis.call('EXPIRE', J .. key, ttl)
  else redis.call('PERSIST', J .. key) end
end
