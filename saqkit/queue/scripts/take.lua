-- take: queued -> active, for as many jobs as the caller has free slots; due jobs are promoted first.
-- ARGV: free slots (-1: none, and whoever asks will take no more under this name), worker, lease_s, limit (0 = none), period_s, unit (jobs | users), who asks, number of the request,
--       key (take this job alone, wherever it waits; empty: the next ones), tick_s (left out: 0.2),
--       rules as JSON (left out or empty: none; see choosing.lua)
-- A request that is repeated, because its reply was lost, gets what it was given: claims nobody knows of are not left.
-- Nor are they by a request that still waits behind a blocking pop when its process gives up: it comes too late.
-- Returns {server time, seconds until something is due or -1, seconds until the rate limit admits more or -1,
--          {key, token, attempt, crashes, prio, at_q, at_r, body, 1 if attempts are recorded}, ...}
local at, free, worker, lease = now(), math.min(tonumber(ARGV[1]), 1000), ARGV[2], tonumber(ARGV[3])
local who, request, named = ARGV[7], ARGV[8], ARGV[9]
local tick, taken, blocked, given = tonumber(ARGV[10] or '0.2'), {}, -1, Q .. 'taken:' .. who
local at_text, expires, leases, pairs_given = text(at), millis(at + lease), {}, {}

contact(at, lease)
local last, configured, stored = unpack(redis.call('MGET', given, Q .. 'settings', Q .. 'arranged'), 1, 3)
arrangement = stored and cjson.decode(stored) or false
promote(at, tick)

local function hand_over(key, token, attempt, f)
  taken[#taken + 1] = {key, token, attempt, tonumber(f[2] or '0'), tonumber(f[3]), f[4], f[5] or f[4], f[6],
                       recording() and 1 or 0}
  leases[#leases + 1] = expires
  leases[#leases + 1] = key
end

local function facts(key)
  return redis.call('HMGET', J .. key, 'att', 'crash', 'prio', 'at_q', 'at_r', 'body')
end

local function claim(key, number)
  local f = facts(key)
  if not f[6] then return end -- somebody deleted the job's hash by hand
  local token, attempt = string.format('%d-%.0f', number, at * 1000), tonumber(f[1] or '0') + 1
  redis.call('HSET', J .. key, 'state', ACTIVE, 'tok', token, 'at_t', at_text, 'worker', worker, 'att', attempt)
  hand_over(key, token, attempt, f)
  pairs_given[#pairs_given + 1] = key
  pairs_given[#pairs_given + 1] = token
end

if last == 'closed' then return {at_text, '-1', '-1'} end
if free < 0 then redis.call('SET', given, 'closed', 'EX', math.ceil(lease) + 1) end
if last and string.sub(last, 1, #request + 1) == request .. ' ' then
  local before = cjson.decode(string.sub(last, #request + 2))
  for i = 1, #before, 2 do
    local f = redis.call('HMGET', J .. before[i], 'state', 'tok', 'att')
    if f[1] == ACTIVE and f[2] == before[i + 1] then hand_over(before[i], f[2], tonumber(f[3]), facts(before[i])) end
  end
  if #leases > 0 then redis.call('ZADD', Q .. 'leases', unpack(leases)) end
  return {at_text, '0', '-1', unpack(taken)}
end
if free < 0 then return {at_text, '-1', '-1'} end

read_rules(ARGV[11] or '', configured)
if named == '' and (rules or arrangement) then
  choosing()
  arrange()
  if arrangement then reopen(at_text) end
end

-- The rate limit is a sliding log: what is admitted stays in the window for a period, or, where one job is heavier
-- than the whole limit, for weight / limit periods.
local used = 0
if limit > 0 then
  used = tonumber(redis.call('GET', Q .. 'weight') or '0')
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', Q .. 'window', '-inf', at_text)) do
    used = used - tonumber(string.match(gone, ':(%d+)$'))
    redis.call('ZREM', Q .. 'window', gone)
  end
end

local function admitted(key, place)
  local weight = 1
  if unit == 'users' then weight = math.max(1, tonumber(redis.call('HGET', J .. key, 'users') or '1')) end
  local counted = math.min(weight, limit)
  if used + counted > limit then
    local first = redis.call('ZRANGE', Q .. 'window', 0, 0, 'WITHSCORES')
    if first[2] then
      blocked = math.max(0, tonumber(first[2]) - at)
      return false
    end
    used = 0 -- an empty window has no weight
  end
  used = used + counted
  local stays = period * math.max(1, weight / limit)
  redis.call('ZADD', Q .. 'window', text(at + stays), string.format('%d:%d', place, counted))
  return true
end

-- One at a time, because the head may be too heavy.
local function take_limited(line)
  while #taken < free and blocked < 0 do
    local head = redis.call('ZRANGE', line, 0, 0)
    if #head == 0 then return end
    local key, number = head[1], redis.call('INCR', Q .. 'seq')
    if redis.call('EXISTS', J .. key) == 0 then
      redis.call('ZREM', line, key)
    elseif admitted(key, number) then
      redis.call('ZREM', line, key)
      claim(key, number)
    end
  end
end

local function take_all(line)
  while #taken < free do
    local popped = redis.call('ZPOPMIN', line, free - #taken)
    if #popped == 0 then return end
    local number = redis.call('INCRBY', Q .. 'seq', #popped / 2) - #popped / 2
    for i = 1, #popped, 2 do
      number = number + 1
      claim(popped[i], number)
    end
  end
end

local paused, waiting = redis.call('EXISTS', Q .. 'paused') == 1, 0
if named ~= '' then
  local f = redis.call('HMGET', J .. named, 'state', 'prio', 'grp', 'body')
  if f[1] == QUEUED or f[1] == SCHEDULED then
    unline(named, f[2], f[3])
    redis.call('ZREM', Q .. 'incomplete', ID .. named)
    if arranged() and f[4] then start_running(named, counted_as(group_of(f[4]))) end
    claim(named, redis.call('INCR', Q .. 'seq'))
  end
elseif rules then
  if not paused then
    take_by_rules(at, at_text, function() return #taken < free and blocked < 0 end, admitted, claim)
    local more, _, opens = may_be_more(), nil, nil
    if arrangement then _, opens = first(Q .. 'closed') end
    if opens and #taken < free and (blocked >= 0 or not more) then
      local left = math.max(0, opens - at)
      blocked = blocked < 0 and left or math.min(blocked, left)
    end
    if more or opens then waiting = 1 end -- if only to tell somebody who has a free slot when a tenant may go on
  end
else
  for prio = 1, 4 do
    local line = Q .. 'queued:' .. prio
    if not paused then
      if limit > 0 then take_limited(line) else take_all(line) end
    end
    if waiting == 0 then waiting = redis.call('ZCARD', line) end
  end
end
if limit > 0 then redis.call('SET', Q .. 'weight', used) end

if #taken > 0 then
  redis.call('ZADD', Q .. 'leases', unpack(leases))
  redis.call('SET', given, request .. ' ' .. cjson.encode(pairs_given), 'EX', math.ceil(lease) + 1)
  -- Last, because a server may refuse it: then they have their leases, and whoever asks again gets them.
  for i = 1, #pairs_given, 2 do tell(pairs_given[i], 'active') end
end
local due = redis.call('ZRANGE', Q .. 'incomplete', 0, 0, 'WITHSCORES')
-- One process was woken; if it leaves something that may be taken, it wakes the next.
if waiting > 0 and blocked < 0 and not paused then wake() end
return {at_text, due[2] and text(math.max(0, on_tick(tonumber(due[2]), tick) - at)) or '-1', text(blocked), unpack(taken)}
