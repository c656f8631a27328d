-- The key schema of a queue, and the words that the transitions share. Put in front of every script.
--
-- KEYS[1] = Q = "saq:{name}:"       KEYS[2] = J = "saq:job:{name}:"      (one hash tag: one slot of a cluster)
--
-- | key             | type   | holds                                                                               |
-- |-----------------|--------|-------------------------------------------------------------------------------------|
-- | Q queued:1..4   | zset   | waiting jobs of a priority level; score = place in the line (from Q seq)              |
-- | Q incomplete    | zset   | delayed jobs and retries, by SAQ's id; score = when due, they wake at the next tick     |
-- | Q leases        | zset   | active jobs; score = when the claim expires unless it is renewed, in whole ms (short  |
-- |                 |        | sorted sets keep whole numbers as such, others as text that each comparison parses)   |
-- | Q dead          | zset   | dead letters; score = when the job died                                               |
-- | Q outgoing      | zset   | dead letters on their way into another queue; score = when the job died                 |
-- | Q seq           | string | counter: places in the line and fencing tokens (with the time, so that a server that  |
-- |                 |        | has forgotten its last second gives out none again)                                   |
-- | Q wake          | list   | at most one element: "there is something to take", popped by one blocked process      |
-- | Q window        | zset   | rate limit: admitted weight; score = when it leaves the window, member = seq:weight   |
-- | Q weight        | string | rate limit: sum of the weights in Q window                                            |
-- | Q taken:<who>   | string | what the last `take` of a process gave it, so that asking again gives the same        |
-- | Q alive         | string | when a process was last heard of: if long ago, the server was away (see `contact`)    |
-- | Q paused        | string | while it exists, nothing is taken                                                     |
-- | Q counts        | hash   | complete, failed, retried, aborted, lost, released, fenced, superseded;               |
-- |                 |        | what became of dead letters: dead_replayed, _moved, _purged, _dropped, _expired       |
-- | Q recording     | string | while it exists, every attempt that ends is appended to Q trace                       |
-- | Q trace         | list   | ended attempts, a JSON array each (see `record`)                                      |
-- | Q aborted:<key> | string | why a job that was running was aborted, while its key stays taken (SAQ's `abort_id`)  |
-- | J <key>         | hash   | a job: body (JSON), state (number of the life-cycle), prio, seq, att, crash, rel      |
-- |                 |        | (given back), users, at_q, at_r, at_t (first enqueued, ready unless at once, taken),  |
-- |                 |        | tok, worker, keep, until, err, enq; while outgoing: to (queue), to_body, to_users,    |
-- |                 |        | move (the delivery's name)                                                            |
--
-- All times are seconds of the server's own clock.
local Q, J = KEYS[1], KEYS[2]
local ID = 'saq:job:' .. string.sub(Q, 6, -3) .. ':' -- and the key: SAQ's id of a job
local QUEUED, SCHEDULED, ACTIVE, DONE, DEAD, CANCELLED, OUTGOING = '1', '2', '3', '4', '5', '6', '7'

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1e6
end

local function text(seconds)
  return string.format('%.6f', seconds)
end

local function millis(seconds)
  return string.format('%d', math.ceil(seconds * 1000))
end

local function on_tick(due, tick)
  local turns = due / tick
  return math.ceil(turns - 1e-9 - 1e-15 * turns) * tick  -- what is on the grid but for rounding stays there
end

-- The last tick that has come; what is due by then wakes. Times are stored to the microsecond.
local function last_tick(at, tick)
  return math.floor(at / tick) * tick + 2e-6
end

local function wake()
  if redis.call('LLEN', Q .. 'wake') == 0 then redis.call('RPUSH', Q .. 'wake', '1') end
end

-- Every process speaks at least each 0.4 leases. If nobody has for half of one, the server was away (or they all
-- are gone): no lease ran meanwhile, so that the living can renew before anybody recovers what they hold.
local function contact(at, lease)
  local last = tonumber(redis.call('GET', Q .. 'alive') or at)
  if at - last > lease / 2 then
    local extended = millis(at + lease * 2 / 3)
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

-- Delayed jobs whose tick has come join the line, at most 1,000 a call, so that the server is never held up.
local function promote(at, tick)
  local due = redis.call('ZRANGEBYSCORE', Q .. 'incomplete', '-inf', text(last_tick(at, tick)), 'LIMIT', 0, 1000)
  if #due == 0 then return due end
  redis.call('ZREM', Q .. 'incomplete', unpack(due))
  for n, id in ipairs(due) do
    local key = string.sub(id, #ID + 1)
    due[n] = key
    local prio = redis.call('HGET', J .. key, 'prio')
    if prio then line_up(key, prio) end
  end
  return due
end

-- Whether `token` is the claim that may change the job now: 1 yes, 0 no (counted), 2 this very change is already made
-- (also where the job is gone: it may have been kept for no time at all).
-- Returns also how long the job's key stays taken after it is done (nil: no longer).
local function holds(key, token, target, later)
  local job = redis.call('HMGET', J .. key, 'state', 'tok', 'keep')
  if job[1] == ACTIVE and job[2] == token then return 1, job[3] end
  if not job[1] or (job[2] == token and (job[1] == target or job[1] == later)) then return 2 end
  redis.call('HINCRBY', Q .. 'counts', 'fenced', 1)
  return 0
end

local recorded -- asked once a call
local function recording()
  if recorded == nil then recorded = redis.call('EXISTS', Q .. 'recording') == 1 end
  return recorded
end

-- Append an attempt that ended to the trace. `row` is what the worker knows of it (JSON), or the job's body.
local function record(outcome, key, at, row)
  if not recording() then return end
  local f = redis.call('HMGET', J .. key, 'att', 'crash', 'prio', 'at_q', 'at_r', 'at_t', 'worker')
  f[5] = f[5] or f[4]
  for i = 1, 7 do f[i] = f[i] or '0' end
  redis.call('RPUSH', Q .. 'trace',
    cjson.encode({outcome, key, text(at), f[1], f[2], f[3], f[4], f[5], f[6], f[7], row}))
end

local function count(what, many)
  redis.call('HINCRBY', Q .. 'counts', what, many or 1)
end

-- Jobs that end give up their leases; `what` they have become is counted.
local function leave(keys, what)
  if #keys == 0 then return end
  redis.call('ZREM', Q .. 'leases', unpack(keys))
  count(what, #keys)
end

local function tell(key, status)
  redis.call('PUBLISH', J .. key, status)
end

-- A job becomes a dead letter. Beyond `cap` of them (0: none) the oldest go, at most 1,000 a call, and are counted.
local function die(key, at, cap)
  redis.call('HSET', J .. key, 'state', DEAD)
  redis.call('ZADD', Q .. 'dead', text(at), key)
  count('failed')
  tell(key, 'failed')
  local beyond = cap > 0 and redis.call('ZCARD', Q .. 'dead') - cap or 0
  if beyond > 0 then
    local oldest = redis.call('ZPOPMIN', Q .. 'dead', math.min(beyond, 1000))
    for i = 1, #oldest, 2 do redis.call('DEL', J .. oldest[i]) end
    count('dead_dropped', #oldest / 2)
  end
end

-- Take a dead letter away from the others, if it is the one that died then ('' or none given: whenever): when it died.
local function take_letter(key, died)
  local score = redis.call('ZSCORE', Q .. 'dead', key)
  if not score or (died and died ~= '' and tonumber(died) ~= tonumber(score)) then return false end
  redis.call('ZREM', Q .. 'dead', key)
  return score
end

-- How long an ended job can still be looked up: ttl > 0 seconds, 0 for ever, -1 not at all.
local function keep_for(key, ttl)
  if ttl < 0 then redis.call('DEL', J .. key)
  elseif ttl > 0 then redis.call('EXPIRE', J .. key, ttl)
  else redis.call('PERSIST', J .. key) end
end
