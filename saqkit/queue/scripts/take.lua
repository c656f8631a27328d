-- take: queued -> active, for as many jobs as the caller has free slots; due jobs are promoted first.
-- ARGV: free slots, worker, lease_s, limit (0 = none), period_s, unit (jobs | users), who asks, number of the request,
--       key (take this job alone, wherever it waits; empty: the next ones)
-- A request that is repeated, because its reply was lost, gets what it was given: claims nobody knows of are not left.
-- Returns {server time, seconds until something is due or -1, seconds until the rate limit admits more or -1,
--          {key, token, attempt, crashes, prio, at_q, at_r, body}, ...}
local at, free, worker, lease = now(), math.min(tonumber(ARGV[1]), 1000), ARGV[2], tonumber(ARGV[3])
local limit, period, unit, who, request, named = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local taken, blocked, given = {}, -1, Q .. 'taken:' .. who

contact(at, lease)
promote(at)

local function row(key, token)
  local f = redis.call('HMGET', J .. key, 'att', 'crash', 'prio', 'at_q', 'at_r', 'body')
  return {key, token, tonumber(f[1]), tonumber(f[2] or '0'), tonumber(f[3]), f[4], f[5], f[6]}
end

local function claim(key, token)
  redis.call('HINCRBY', J .. key, 'att', 1)
  redis.call('HSET', J .. key, 'state', ACTIVE, 'tok', token, 'at_t', text(at), 'worker', worker)
  redis.call('ZADD', Q .. 'leases', text(at + lease), key)
  tell(key, 'active')
  taken[#taken + 1] = row(key, string.format('%d', token))
end

local last = redis.call('GET', given)
if last and string.sub(last, 1, #request + 1) == request .. ' ' then
  for _, pair in ipairs(cjson.decode(string.sub(last, #request + 2))) do
    local f = redis.call('HMGET', J .. pair[1], 'state', 'tok')
    if f[1] == ACTIVE and f[2] == pair[2] then
      redis.call('ZADD', Q .. 'leases', text(at + lease), pair[1])
      taken[#taken + 1] = row(pair[1], pair[2])
    end
  end
  return {text(at), '0', '-1', unpack(taken)}
end

-- The rate limit is a sliding log: what is admitted stays in the window for a period, or, where one job is heavier
-- than the whole limit, for weight / limit periods.
local used = 0
if limit > 0 then
  used = tonumber(redis.call('GET', Q .. 'weight') or '0')
  for _, gone in ipairs(redis.call('ZRANGEBYSCORE', Q .. 'window', '-inf', text(at))) do
    used = used - tonumber(string.match(gone, ':(%d+)$'))
    redis.call('ZREM', Q .. 'window', gone)
  end
end

local function admitted(key, place)
  if limit == 0 then return true end
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

local paused, waiting = redis.call('EXISTS', Q .. 'paused') == 1, 0
if named ~= '' then
  local f = redis.call('HMGET', J .. named, 'state', 'prio')
  if f[1] == QUEUED or f[1] == SCHEDULED then
    redis.call('ZREM', Q .. 'queued:' .. f[2], named)
    redis.call('ZREM', Q .. 'scheduled', named)
    claim(named, redis.call('INCR', Q .. 'seq'))
  end
else
  for prio = 1, 4 do
    local line = Q .. 'queued:' .. prio
    while not paused and #taken < free and blocked < 0 do
      local head = redis.call('ZRANGE', line, 0, 0)
      if #head == 0 then break end
      local key, token = head[1], redis.call('INCR', Q .. 'seq')
      if redis.call('EXISTS', J .. key) == 0 then
        redis.call('ZREM', line, key) -- somebody deleted the job's hash by hand
      elseif admitted(key, token) then
        redis.call('ZREM', line, key)
        claim(key, token)
      end
    end
    waiting = waiting + redis.call('ZCARD', line)
  end
  if limit > 0 then redis.call('SET', Q .. 'weight', used) end
end

if #taken > 0 then
  local pairs_given = {}
  for n, job in ipairs(taken) do pairs_given[n] = {job[1], job[2]} end
  redis.call('SET', given, request .. ' ' .. cjson.encode(pairs_given), 'EX', math.ceil(lease) + 1)
end
local due = redis.call('ZRANGE', Q .. 'scheduled', 0, 0, 'WITHSCORES')
-- One process was woken; if it leaves something that may be taken, it wakes the next.
if waiting > 0 and blocked < 0 and not paused then wake() end
return {text(at), due[2] and text(math.max(0, tonumber(due[2]) - at)) or '-1', text(blocked), unpack(taken)}
