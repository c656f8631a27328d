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
-- | Q outgoing      | zset   | on their way into another queue: dead letters (score = when the job died), and jobs   |
-- |                 |        | that follow one which has ended (when it has; see following.lua)                      |
-- | Q seq           | string | counter: places in the line and fencing tokens (with the time, so that a server that  |
-- |                 |        | has forgotten its last second gives out none again)                                   |
-- | Q wake          | list   | at most one element: "there is something to take", popped by one blocked process      |
-- | Q window        | zset   | rate limit: admitted weight; score = when it leaves the window, member = seq:weight   |
-- | Q weight        | string | rate limit: sum of the weights in Q window                                            |
-- | Q settings      | string | what `configure` has changed, as JSON; it wins over what processes were started with  |
-- | Q passes        | hash   | weighted priorities: of each level, what it has had (see saqkit/spec/choosing.py)     |
-- | Q arranged      | string | while it exists, waiting jobs stand in the lines of groups too (see lines.lua): how   |
-- | Q line:<p>:<g>  | zset   | waiting jobs of a group and priority level; score as in Q queued                      |
-- | Q heads:<p>:<o> | zset   | the groups of an owner; score = place of the first job, raised if parked              |
-- | Q turns:1..4    | zset   | the owners who wait in a level; score = their turn, raised if all groups are parked   |
-- | Q circle:1..4   | hash   | turns of a level: which is now, and how many turns anybody may be behind (see lines.lua) |
-- | Q left:1..4     | zset   | owners without waiting jobs, as long as it matters; score = the turn they had         |
-- | Q behind:1..4   | string | while it exists, jobs of these places waited before there were groups and are to join  |
-- |                 |        | theirs: the first (or `(` and the last that has), and the last                        |
-- | Q wait:<p>:<n>  | zset   | parked groups of a level that wait for a name (see Q running; a tenant's is ["",t]);  |
-- |                 |        | score = their rank then                                                               |
-- | Q waits         | set    | level and name of each of these                                                       |
-- | Q running       | hash   | name of a running limit's key and value -> how many jobs run                          |
-- | Q freed         | set    | such names whose number has fallen while groups waited: the next `take` looks         |
-- | Q tenant:<t>    | zset   | rate limit of a tenant: as Q window                                                   |
-- | Q used:<t>      | string | rate limit of a tenant: as Q weight                                                   |
-- | Q closed        | zset   | tenants whose window has no room; score = when something leaves it                    |
-- | Q taken:<who>   | string | what the last `take` of a process gave it, so that asking again gives the same        |
-- | Q alive         | string | when a process was last heard of: if long ago, the server was away (see `contact`)    |
-- | Q paused        | string | while it exists, nothing is taken: since when, and JSON of who paused it and why        |
-- | Q slots         | string | how many slots each process has for this queue, if an operator has decided it          |
-- | Q counts        | hash   | complete, failed, retried, aborted, lost, released, fenced, superseded;               |
-- |                 |        | what became of dead letters: dead_replayed, _moved, _purged, _dropped, _expired       |
-- | Q recording     | string | while it exists, every attempt that ends is appended to Q trace; a number above 1 is    |
-- |                 |        | how many are kept, the last ones                                                      |
-- | Q trace         | list   | ended attempts, a JSON array each (see `record`)                                      |
-- | Q unique        | hash   | unique id -> the job that has it: until when at least, t (for that time) or s (until it  |
-- |                 |        | starts) or e (until it ends), its key; an entry may be out of date (see `taken_by`)    |
-- | Q schedules     | hash   | a schedule -> its last firing that was dealt with, in whole seconds                    |
-- | Q batch:<id>    | hash   | a batch: what has become of its members, whom it calls back (see following.lua)        |
-- | Q batches       | zset   | the batches; score = when each is forgotten, inf while members are pending or it is open |
-- | Q aborted:<key> | string | why a job that was running was aborted, while its key stays taken (SAQ's `abort_id`)  |
-- | J <key>         | hash   | a job: body (JSON), state (number of the life-cycle), prio, seq, att, crash, rel      |
-- |                 |        | (given back), users, at_q, at_r, at_t (first enqueued, ready unless at once, taken),  |
-- |                 |        | tok, worker, keep, until, err, enq, grp (its group), run (JSON: what it is counted as |
-- |                 |        | while it runs); batch (its weight and batch); while outgoing: to (queue), to_key (else  |
-- |                 |        | the same), to_body, to_users, move (the delivery's name)                              |
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
  local turns = math.min(due, 1e12) / tick -- who says 1e308 means never, and gets no infinity
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

-- The job that has a unique id now, nil if none has. The entry of a job that has ended is dropped, but for a dead letter's:
-- if it is replayed before anybody else has asked, it has its id again.
local function taken_by(id, at)
  local entry = redis.call('HGET', Q .. 'unique', id)
  if not entry then return nil end
  local ends, mode, key = string.match(entry, '^(%S+) (%a) (.*)$')
  if tonumber(ends) > at then return key end
  local f = redis.call('HMGET', J .. key, 'state', 'unique', 'until')
  local state = f[2] == id and f[1] or nil
  if state == QUEUED or state == SCHEDULED or state == OUTGOING then
    if mode ~= 't' then return key end
  elseif mode == 'e' and (state == ACTIVE or (state == CANCELLED and f[3] and tonumber(f[3]) > at)) then
    return key -- also while a job that was cancelled may still be running
  elseif state ~= DEAD and state ~= ACTIVE then
    redis.call('HDEL', Q .. 'unique', id)
  end
end

-- Nobody is told when a unique id is free again, so now and then some entries are looked at.
local function look_over_ids(many, at)
  for _, id in ipairs(redis.call('HRANDFIELD', Q .. 'unique', many)) do taken_by(id, at) end
end

-- Whether `token` is the claim that may change the job now: 1 yes, 0 no (counted), 2 this very change is already made.
-- A token that ends with "?" is said again, as the answer was lost: then a job that is gone was this change's too, as it
-- may have been kept for no time at all. Who says it for the first time is late: somebody else has ended the job.
-- Returns also how long the job's key stays taken after it is done (nil: no longer), what it is counted as while it runs, and
-- its field `batch`.
local function holds(key, token, target, later)
  local again = string.sub(token, -1) == '?'
  if again then token = string.sub(token, 1, -2) end
  local job = redis.call('HMGET', J .. key, 'state', 'tok', 'keep', 'run', 'batch')
  if job[1] == ACTIVE and job[2] == token then return 1, job[3], job[4], job[5] end
  if (again and not job[1]) or (job[2] == token and (job[1] == target or job[1] == later)) then return 2 end
  redis.call('HINCRBY', Q .. 'counts', 'fenced', 1)
  return 0
end

local recorded -- asked once a call: how many attempts are kept (1: all), 0 if none is recorded
local function recording()
  if recorded == nil then recorded = tonumber(redis.call('GET', Q .. 'recording') or '0') end
  return recorded > 0
end

-- Append an attempt that ended to the trace. `row` is what the worker knows of it (JSON), or the job's body.
local function record(outcome, key, at, row)
  if not recording() then return end
  local f = redis.call('HMGET', J .. key, 'att', 'crash', 'prio', 'at_q', 'at_r', 'at_t', 'worker')
  f[5] = f[5] or f[4]
  for i = 1, 7 do f[i] = f[i] or '0' end
  redis.call('RPUSH', Q .. 'trace',
    cjson.encode({outcome, key, text(at), f[1], f[2], f[3], f[4], f[5], f[6], f[7], row}))
  if recorded > 1 then redis.call('LTRIM', Q .. 'trace', -recorded, -1) end
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

local untold -- what the server said where it refused to let listeners be told: the step is whole all the same
local function tell(key, status)
  local said = redis.pcall('PUBLISH', J .. key, status)
  if type(said) == 'table' and said.err then untold = said end
end

local leaves_batch -- a dead letter that is removed leaves its batch: following.lua, where something can be removed

-- A job becomes a dead letter. Beyond `cap` of them (0: none) the oldest go, at most 1,000 a call, and are counted.
local function die(key, at, cap)
  redis.call('HSET', J .. key, 'state', DEAD)
  redis.call('ZADD', Q .. 'dead', text(at), key)
  count('failed')
  tell(key, 'failed')
  local beyond = cap > 0 and redis.call('ZCARD', Q .. 'dead') - cap or 0
  if beyond > 0 then
    local oldest = redis.call('ZPOPMIN', Q .. 'dead', math.min(beyond, 1000))
    for i = 1, #oldest, 2 do
      leaves_batch(oldest[i])
      redis.call('DEL', J .. oldest[i])
    end
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

-- The server refuses a time that is no whole number, or too long for it: what ends a script in its middle. 100 years will do.
local function expire(name, seconds)
  redis.call('PEXPIRE', name, string.format('%d', math.min(math.ceil(seconds * 1000), 3155760000000)))
end

-- How long an ended job can still be looked up: ttl > 0 seconds, 0 for ever, -1 not at all.
local function keep_for(key, ttl)
  if ttl < 0 then redis.call('DEL', J .. key)
  elseif ttl > 0 then expire(J .. key, ttl)
  else redis.call('PERSIST', J .. key) end
end
