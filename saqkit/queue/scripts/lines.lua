-- Where waiting jobs stand. Put behind keys.lua, in front of every script.
--
-- Every job that waits stands in the line of its level. Where tenants take turns, or limits hold some jobs back, it stands
-- in the line of its group as well, so that nobody who takes has to look at jobs that may not go. The jobs of a group have
-- one owner, one tenant and one value of each key that has a running limit, so they wait for the same; its name is a JSON
-- array of these. Of a level, `turns` ranks the owners and `heads` of an owner ranks its groups by their first job. What
-- may not go now is parked: its score is raised by PARKED, and it stands in Q wait of what it waits for. Of owners and
-- groups that are not parked, each has a job that nobody has yet found to be held back.
local PARKED = 4503599627370496 -- 2^52: above every place, and their sum is still exact

local function first(line)
  local found = redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')
  return found[1], tonumber(found[2])
end

-- A job begins to run: it counts for the limits of its group.
local function start_running(key, names)
  if #names == 0 then return end
  redis.call('HSET', J .. key, 'run', cjson.encode(names))
  for _, name in ipairs(names) do redis.call('HINCRBY', Q .. 'running', name, 1) end
end

local arrangement -- asked once a call: {how jobs are grouped, their limits} as JSON, false where they are not
local grouping -- the first of these: {tenants take turns, tenants count, keys with a limit, providers of job types}
local groups -- makes what works on them
local function arranged()
  if arrangement == nil then
    local stored = redis.call('GET', Q .. 'arranged')
    arrangement = stored and cjson.decode(stored) or false
  end
  if arrangement and not grouping then
    groups()
    grouping = cjson.decode(arrangement[1])
    local providers = {}
    for _, pair in ipairs(grouping[4]) do providers[pair[1]] = pair[2] end
    grouping[4] = providers
  end
  return arrangement
end

-- What works on groups. To make a function costs each call of a script, also where nobody uses it: so these are made by the
-- first who needs them.
local group_of, counted_as, unpark_all_that_wait_for, unpark_next_that_waits_for, had_turn, park_owner
local park, join, forget_who_waits, unpark_all, recount
function groups()
  if group_of then return end

  -- A text, a number or a boolean as text; anything else is no value.
  local function value_of(thing)
    local kind = type(thing)
    if kind == 'number' then return string.format('%.17g', thing) end
    return (kind == 'string' or kind == 'boolean') and tostring(thing)
  end

  -- The name of the group of a job. Of a body that is no JSON nothing is known.
  function group_of(body)
    local read, job = pcall(cjson.decode, body)
    if not read or type(job) ~= 'table' then job = {} end
    local meta = type(job.meta) == 'table' and job.meta or {}
    local arguments = type(job.kwargs) == 'table' and job.kwargs or {}
    local tenant = value_of(meta.tenant) or ''
    local group = {grouping[1] and tenant or '', grouping[2] and tenant or ''}
    for n, key in ipairs(grouping[3]) do
      local value
      if key == 'tenant' then value = tenant
      elseif key == 'job_type' then value = value_of(job['function'])
      elseif key == 'provider' then value = value_of(grouping[4][job['function'] or ''])
      else value = value_of(arguments[key]) or value_of(meta[key]) end
      group[n + 2] = value or false
    end
    return cjson.encode(group)
  end

  -- What the running jobs of a group are counted as, one name for each limit that they have.
  function counted_as(group)
    local names, values = {}, cjson.decode(group)
    for n, key in ipairs(grouping[3]) do
      if values[n + 2] then names[#names + 1] = cjson.encode({key, values[n + 2]}) end
    end
    return names
  end

  -- Show or park something that is ranked in `zset`.
  local function shift(zset, member, parked)
    local score = tonumber(redis.call('ZSCORE', zset, member) or '')
    if score and (score >= PARKED) ~= parked then
      redis.call('ZADD', zset, parked and score + PARKED or score - PARKED, member)
    end
  end

  local function unpark(prio, group)
    local owner = cjson.decode(group)[1]
    shift(Q .. 'heads:' .. prio .. ':' .. owner, group, false)
    if redis.call('ZSCORE', Q .. 'heads:' .. prio .. ':' .. owner, group) then
      shift(Q .. 'turns:' .. prio, owner, false)
    end
  end

  local function stop_waiting(prio, name)
    redis.call('DEL', Q .. 'wait:' .. prio .. ':' .. name)
    redis.call('SREM', Q .. 'waits', prio .. name)
  end

  function unpark_all_that_wait_for(name)
    for prio = 1, 4 do
      local groups = redis.call('ZRANGE', Q .. 'wait:' .. prio .. ':' .. name, 0, -1)
      for _, group in ipairs(groups) do unpark(prio, group) end
      if #groups > 0 then stop_waiting(prio, name) end
    end
  end

  -- What decides when a group is next in its level: the turn of its owner, or where nobody takes turns its first job's place.
  local function rank_of(prio, group)
    local owner = cjson.decode(group)[1]
    local score = tonumber(redis.call('ZSCORE', Q .. 'heads:' .. prio .. ':' .. owner, group) or '')
    if score and grouping[1] then score = tonumber(redis.call('ZSCORE', Q .. 'turns:' .. prio, owner)) end
    return score and score >= PARKED and score - PARKED or score
  end

  -- Of those who wait for `name` let the next of each level be looked at; whether anybody waits on. Who has had a turn or lost
  -- a job since it was parked has another rank by now: then so is the one behind it, and so on.
  function unpark_next_that_waits_for(name)
    local wait_on = false
    for prio = 1, 4 do
      local line, found = Q .. 'wait:' .. prio .. ':' .. name, false
      local group, rank = first(line)
      while group and not found do
        for _, one in ipairs(redis.call('ZRANGEBYSCORE', line, rank, rank)) do
          local current = rank_of(prio, one)
          redis.call('ZREM', line, one)
          if current then unpark(prio, one) end
          found = found or (current and current <= rank)
        end
        group, rank = first(line)
        if not group then stop_waiting(prio, name) end
      end
      wait_on = wait_on or group
    end
    return wait_on
  end

  -- Whose turn it is: as `Turns` in saqkit/spec/choosing.py says. Where nobody takes turns there is one owner.
  local TURN, FIRST = 1000, 1000000000

  local function circle(prio)
    local f = redis.call('HMGET', Q .. 'circle:' .. prio, 'now', 'claims')
    return tonumber(f[1] or FIRST), tonumber(f[2] or 1)
  end

  local function comes(prio, owner)
    local turns, left, turn = Q .. 'turns:' .. prio, Q .. 'left:' .. prio, 0
    if grouping[1] then
      local now, claims = circle(prio)
      local running = redis.call('ZCARD', Q .. 'leases')
      if running == 0 and redis.call('EXISTS', turns) == 0 then
        redis.call('DEL', left)
        claims = 1
      end
      now, claims = now + 1, math.max(claims, running)
      redis.call('HSET', Q .. 'circle:' .. prio, 'now', now, 'claims', claims)
      local lowest = now - TURN * (claims - 1)
      redis.call('ZREMRANGEBYSCORE', left, '-inf', lowest)
      turn = redis.call('ZSCORE', left, owner) or lowest
      redis.call('ZREM', left, owner)
    end
    redis.call('ZADD', turns, turn, owner)
  end

  function had_turn(prio, owner)
    local now, claims = circle(prio)
    local turn = tonumber(redis.call('ZSCORE', Q .. 'turns:' .. prio, owner))
    now = math.max(now, turn)
    redis.call('HSET', Q .. 'circle:' .. prio, 'now', now)
    if turn <= now - TURN * claims then turn = now - TURN * (claims - 1) end -- a limit has held it back for long
    redis.call('ZADD', Q .. 'turns:' .. prio, turn + TURN, owner)
  end

  local function goes(prio, owner)
    local turn = arranged() and grouping[1] and tonumber(redis.call('ZSCORE', Q .. 'turns:' .. prio, owner) or '')
    if turn then redis.call('ZADD', Q .. 'left:' .. prio, turn >= PARKED and turn - PARKED or turn, owner) end
    redis.call('ZREM', Q .. 'turns:' .. prio, owner)
  end

  function park_owner(prio, owner)
    local _, best = first(Q .. 'heads:' .. prio .. ':' .. owner)
    if not best then goes(prio, owner)
    elseif best >= PARKED then shift(Q .. 'turns:' .. prio, owner, true) end
  end

  function park(prio, owner, group, name)
    shift(Q .. 'heads:' .. prio .. ':' .. owner, group, true)
    redis.call('ZADD', Q .. 'wait:' .. prio .. ':' .. name, rank_of(prio, group), group)
    redis.call('SADD', Q .. 'waits', prio .. name)
    park_owner(prio, owner)
  end

  -- Put a waiting job in the line of its group. Who has another first job is looked at again.
  function join(key, prio, seq, group)
    local owner, line = cjson.decode(group)[1], Q .. 'line:' .. prio .. ':' .. group
    local heads, turns = Q .. 'heads:' .. prio .. ':' .. owner, Q .. 'turns:' .. prio
    redis.call('ZADD', line, seq, key)
    if first(line) ~= key then return end
    redis.call('ZADD', heads, seq, group)
    if redis.call('ZSCORE', turns, owner) then
      shift(turns, owner, false)
    else
      comes(prio, owner)
    end
  end

  function forget_who_waits()
    for _, one in ipairs(redis.call('SMEMBERS', Q .. 'waits')) do
      redis.call('DEL', Q .. 'wait:' .. string.sub(one, 1, 1) .. ':' .. string.sub(one, 2))
    end
    redis.call('DEL', Q .. 'waits', Q .. 'closed', Q .. 'freed')
  end

  -- Look again at everybody who waits for something.
  function unpark_all()
    for prio = 1, 4 do
      for _, owner in ipairs(redis.call('ZRANGE', Q .. 'turns:' .. prio, 0, -1)) do
        for _, group in ipairs(redis.call('ZRANGE', Q .. 'heads:' .. prio .. ':' .. owner, 0, -1)) do
          unpark(prio, group)
        end
      end
    end
    forget_who_waits()
  end

  -- Count the running jobs anew: where limits begin, or where somebody deleted a running job by hand.
  function recount()
    redis.call('DEL', Q .. 'running')
    for _, key in ipairs(redis.call('ZRANGE', Q .. 'leases', 0, -1)) do
      local body = redis.call('HGET', J .. key, 'body')
      redis.call('HDEL', J .. key, 'run')
      if body then start_running(key, counted_as(group_of(body))) end
    end
  end
end

-- Take a job out of its lines (`group`: its field `grp`, or nil).
local function unline(key, prio, group)
  redis.call('ZREM', Q .. 'queued:' .. prio, key)
  local line = group and Q .. 'line:' .. prio .. ':' .. group
  if not group or redis.call('ZREM', line, key) == 0 then return end
  groups()
  local owner = cjson.decode(group)[1]
  local heads = Q .. 'heads:' .. prio .. ':' .. owner
  local _, seq = first(line)
  if seq then
    local score = tonumber(redis.call('ZSCORE', heads, group) or '0')
    redis.call('ZADD', heads, score >= PARKED and seq + PARKED or seq, group)
  else
    redis.call('ZREM', heads, group)
    park_owner(prio, owner)
  end
end

-- Put a job in its lines; `seq` keeps an old place, none gives the last.
local function line_up(key, prio, seq)
  seq = seq or redis.call('INCR', Q .. 'seq')
  redis.call('ZADD', Q .. 'queued:' .. prio, seq, key)
  if arranged() then
    local group = group_of(redis.call('HGET', J .. key, 'body'))
    redis.call('HSET', J .. key, 'state', QUEUED, 'seq', seq, 'grp', group)
    join(key, prio, tonumber(seq), group)
  else
    redis.call('HSET', J .. key, 'state', QUEUED, 'seq', seq)
  end
end

-- Delayed jobs whose tick has come join the line, at most 100 a call, so that the server is never held up.
local function promote(at, tick)
  local due = redis.call('ZRANGEBYSCORE', Q .. 'incomplete', '-inf', text(last_tick(at, tick)), 'LIMIT', 0, 100)
  if #due == 0 then return due end
  redis.call('ZREMRANGEBYRANK', Q .. 'incomplete', 0, #due - 1)
  local grouped, place, places = arranged(), redis.call('INCRBY', Q .. 'seq', #due) - #due, {}
  for n, id in ipairs(due) do
    local key = string.sub(id, #ID + 1)
    local prio = redis.call('HGET', J .. key, 'prio')
    due[n] = key
    if prio and grouped then
      line_up(key, prio, place + n)
    elseif prio then
      local line = places[prio] or {}
      line[#line + 1] = place + n
      line[#line + 1] = key
      places[prio] = line
      redis.call('HSET', J .. key, 'state', QUEUED, 'seq', place + n)
    end
  end
  for prio, line in pairs(places) do redis.call('ZADD', Q .. 'queued:' .. prio, unpack(line)) end
  return due
end

-- A job runs no more (`run`: its field of that name, or nil). Who waits for its place is looked at by the next `take`.
local function stop_running(key, run)
  if not run then return end
  redis.call('HDEL', J .. key, 'run')
  for _, name in ipairs(cjson.decode(run)) do
    if redis.call('HINCRBY', Q .. 'running', name, -1) <= 0 then redis.call('HDEL', Q .. 'running', name) end
    local line = Q .. 'wait:'
    if redis.call('EXISTS', line .. '1:' .. name, line .. '2:' .. name, line .. '3:' .. name, line .. '4:' .. name) > 0 then
      redis.call('SADD', Q .. 'freed', name)
      wake()
    end
  end
end
