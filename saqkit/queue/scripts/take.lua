-- take: queued -> active, for as many jobs as the caller has free slots; due jobs are promoted first.
-- ARGV: free slots, worker, lease_s, limit (0 = none), period_s, unit (jobs | users)
-- Returns {server time, seconds until something is due or -1, seconds until the rate limit admits more or -1,
--          {key, token, attempt, crashes, prio, at_q, at_r, body}, ...}
local at, free, worker, lease = now(), tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local limit, period, unit = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local taken, blocked = {}, -1

promote(at)

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
    blocked = math.max(0, tonumber(first[2]) - at)
    return false
  end
  used = used + counted
  redis.call('ZADD', Q .. 'window', text(at + period * math.max(1, weight / limit)), place .. ':' .. counted)
  return true
end

local paused = redis.call('EXISTS', Q .. 'paused') == 1
local waiting = 0
for prio = 1, 4 do
  local line = Q .. 'queued:' .. prio
  while not paused and #taken < free and blocked < 0 do
    local head = redis.call('ZRANGE', line, 0, 0)
    if #head == 0 then break end
    local key, token = head[1], redis.call('INCR', Q .. 'seq')
    if admitted(key, token) then
      redis.call('ZREM', line, key)
      local f = redis.call('HMGET', J .. key, 'att', 'crash', 'at_q', 'at_r', 'body')
      local attempt = tonumber(f[1] or '0') + 1
      redis.call('HSET', J .. key, 'state', ACTIVE, 'att', attempt, 'tok', token, 'at_t', text(at), 'worker', worker)
      redis.call('ZADD', Q .. 'leases', text(at + lease), key)
      taken[#taken + 1] = {key, tostring(token), attempt, tonumber(f[2] or '0'), prio, f[3], f[4], f[5]}
    end
  end
  waiting = waiting + redis.call('ZCARD', line)
end
if limit > 0 then redis.call('SET', Q .. 'weight', used) end

local due = redis.call('ZRANGE', Q .. 'scheduled', 0, 0, 'WITHSCORES')
-- One process was woken; if it leaves something that may be taken, it wakes the next.
if waiting > 0 and blocked < 0 and not paused then wake() end
return {text(at), due[2] and text(math.max(0, tonumber(due[2]) - at)) or '-1', text(blocked), unpack(taken)}
