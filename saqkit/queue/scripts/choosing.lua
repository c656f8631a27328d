-- Which job is taken next, where a queue has weights, turns of tenants or limits of its own (else take.lua goes through its
-- lines as they are). Put in front of take.lua, behind lines.lua. The rules are those of saqkit/spec/choosing.py.
--
-- Rules: rate {limit, period, unit}, weights {of the four levels}, fair, tenant_rate, limits {{key, number}, ...},
-- providers {{job type, provider}, ...}; what an operator has configured wins over what the process was started with.
local rules
local limit, period, unit = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]

local function read_rules(started_with, configured)
  if started_with == '' and not configured then return end
  rules = started_with ~= '' and cjson.decode(started_with) or {}
  for name, value in pairs(configured and cjson.decode(configured) or {}) do rules[name] = value end
  for name, value in pairs(rules) do if value == cjson.null then rules[name] = false end end
  if rules.rate then limit, period, unit = rules.rate[1], rules.rate[2], rules.rate[3]
  elseif rules.rate == false then limit = 0 end
end

-- Made only where there are rules, as the groups are (see lines.lua).
local arrange, reopen, take_by_rules, may_be_more
local function choosing()
  groups()

  -- Keep the groups as the rules need them. Where they begin, jobs that wait already join theirs 1,000 a call.
  function arrange()
    local grouped, limits = '', ''
    if rules and (rules.fair or rules.tenant_rate or rules.limits) then
      local keys, providers = {}, {}
      for n, one in ipairs(rules.limits or {}) do
        keys[n] = one[1]
        if one[1] == 'provider' then providers = rules.providers or {} end
      end
      grouped = cjson.encode({rules.fair or false, (rules.fair or rules.tenant_rate) and true or false, keys, providers})
      limits = cjson.encode({rules.tenant_rate or false, rules.limits or false})
    end
    if arrangement and arrangement[1] ~= grouped then
      for prio = 1, 4 do
        for _, owner in ipairs(redis.call('ZRANGE', Q .. 'turns:' .. prio, 0, -1)) do
          local heads = Q .. 'heads:' .. prio .. ':' .. owner
          for _, group in ipairs(redis.call('ZRANGE', heads, 0, -1)) do
            redis.call('UNLINK', Q .. 'line:' .. prio .. ':' .. group) -- its memory is freed beside the server's work
          end
          redis.call('DEL', heads)
        end
        redis.call('DEL', Q .. 'turns:' .. prio, Q .. 'circle:' .. prio, Q .. 'left:' .. prio, Q .. 'behind:' .. prio)
      end
      forget_who_waits()
      redis.call('DEL', Q .. 'arranged', Q .. 'running')
      arrangement, grouping = false, nil
    end
    if grouped == '' then return end
    if not arrangement then
      arrangement = {grouped, limits}
      redis.call('SET', Q .. 'arranged', cjson.encode(arrangement))
      for prio = 1, 4 do
        local last = redis.call('ZRANGE', Q .. 'queued:' .. prio, -1, -1, 'WITHSCORES')[2]
        if last then redis.call('SET', Q .. 'behind:' .. prio, '-inf ' .. last) end
      end
      grouping = nil
      arranged()
      recount()
    elseif arrangement[2] ~= limits then
      arrangement[2] = limits
      redis.call('SET', Q .. 'arranged', cjson.encode(arrangement))
      unpark_all()
    end
    arranged()
    local left = 1000
    for prio = 1, 4 do
      local behind, line, most, fresh = Q .. 'behind:' .. prio, Q .. 'queued:' .. prio, left, {}
      local from, last = string.match(left > 0 and redis.call('GET', behind) or '', '^(%S+) (%S+)$')
      if from then fresh = redis.call('ZRANGEBYSCORE', line, from, last, 'WITHSCORES', 'LIMIT', 0, most) end
      left = left - #fresh / 2
      if from and #fresh == 2 * most then redis.call('SET', behind, '(' .. fresh[#fresh] .. ' ' .. last)
      elseif from then redis.call('DEL', behind) end
      for i = 1, #fresh, 2 do
        local key, seq = fresh[i], fresh[i + 1]
        local f = redis.call('HMGET', J .. key, 'body', 'grp')
        local joined = f[2] and redis.call('ZSCORE', Q .. 'line:' .. prio .. ':' .. f[2], key)
        if f[1] and not joined then
          local group = group_of(f[1])
          redis.call('HSET', J .. key, 'grp', group)
          join(key, prio, tonumber(seq), group)
        end
      end
    end
  end

  -- Names for which somebody waits although there may be room: as long as there is, the next of each level is not parked.
  local freed = {}
  local function let_in()
    for name in pairs(freed) do
      local key, most = cjson.decode(name)[1], 0
      for _, one in ipairs(rules and rules.limits or {}) do if one[1] == key then most = one[2] end end
      local room = tonumber(redis.call('HGET', Q .. 'running', name) or '0') < most
      if not room or not unpark_next_that_waits_for(name) then
        freed[name] = nil
        redis.call('SREM', Q .. 'freed', name)
      end
    end
  end

  -- Those wait no more whose tenant's window has opened, or for whose limit a job has ended.
  function reopen(at_text)
    for _, tenant in ipairs(redis.call('ZRANGEBYSCORE', Q .. 'closed', '-inf', at_text)) do
      unpark_all_that_wait_for(cjson.encode({'', tenant}))
      redis.call('ZREM', Q .. 'closed', tenant)
    end
    for _, name in ipairs(redis.call('SMEMBERS', Q .. 'freed')) do freed[name] = true end
    let_in()
  end

  local function weight_of(key, counts)
    return counts == 'users' and math.max(1, tonumber(redis.call('HGET', J .. key, 'users') or '1')) or 1
  end

  local used_by = {} -- what is in the windows of tenants, asked once a call
  local function used(tenant, at_text)
    if not used_by[tenant] then
      local window, sum = Q .. 'tenant:' .. tenant, tonumber(redis.call('GET', Q .. 'used:' .. tenant) or '0')
      local over = redis.call('ZRANGEBYSCORE', window, '-inf', at_text)
      for _, gone in ipairs(over) do
        sum = sum - tonumber(string.match(gone, ':(%d+)$'))
        redis.call('ZREM', window, gone)
      end
      -- At once: perhaps another tenant's job is taken, and what has left the window must not count for ever.
      if #over > 0 then redis.call('SET', Q .. 'used:' .. tenant, sum, 'KEEPTTL') end
      used_by[tenant] = sum
    end
    return used_by[tenant]
  end

  -- The name of what holds a job back, nil if it may go. A tenant for whose job there is no room is closed, with all that it
  -- has in this queue, until something leaves its window: else lighter jobs would keep a heavy one waiting for ever.
  local function held_back(key, group, at_text)
    local values = cjson.decode(group)
    local tenant = values[2]
    local name = rules.tenant_rate and cjson.encode({'', tenant})
    if name and redis.call('ZSCORE', Q .. 'closed', tenant) then return name end
    for n, one in ipairs(rules.limits or {}) do
      if values[n + 2] then
        local counted = cjson.encode({one[1], values[n + 2]})
        if tonumber(redis.call('HGET', Q .. 'running', counted) or '0') >= one[2] then return counted end
      end
    end
    if not name then return end
    local most = rules.tenant_rate[1]
    if used(tenant, at_text) + math.min(weight_of(key, rules.tenant_rate[3]), most) > most then
      local _, opens = first(Q .. 'tenant:' .. tenant)
      if opens then
        redis.call('ZADD', Q .. 'closed', text(opens), tenant)
        return name
      end
      used_by[tenant] = 0 -- an empty window has no weight
    end
  end

  -- Write down that a tenant's job is taken: in its window until it leaves it.
  local function enter_window(key, tenant, number, at)
    local most, weight = rules.tenant_rate[1], weight_of(key, rules.tenant_rate[3])
    local window, counted = Q .. 'tenant:' .. tenant, math.min(weight, most)
    used_by[tenant] = used_by[tenant] + counted
    redis.call('ZADD', window, text(at + rules.tenant_rate[2] * math.max(1, weight / most)),
               string.format('%d:%d', number, counted))
    local empty = redis.call('ZRANGE', window, -1, -1, 'WITHSCORES')[2]
    redis.call('SET', Q .. 'used:' .. tenant, used_by[tenant])
    for _, name in ipairs({window, Q .. 'used:' .. tenant}) do expire(name, tonumber(empty) - at + 1) end
  end

  -- The job of a level that may go next: its key, group and owner; nil if none may. What may not is parked, at most 200 groups
  -- a call, so that the server is never held up: then nothing more is taken, and whoever asks next goes on from there.
  local looks_left = 200
  local function next_of(prio, at_text)
    while true do
      local key, group, owner, turn, seq
      if arrangement then
        owner, turn = first(Q .. 'turns:' .. prio)
        if not owner or turn >= PARKED then return end
        group, seq = first(Q .. 'heads:' .. prio .. ':' .. owner)
        key = group and first(Q .. 'line:' .. prio .. ':' .. group)
      else
        key = first(Q .. 'queued:' .. prio)
        if not key then return end
      end
      if not key or (seq and seq >= PARKED) then -- somebody deleted something by hand
        if group and not key then redis.call('ZREM', Q .. 'heads:' .. prio .. ':' .. owner, group) end
        park_owner(prio, owner)
      elseif redis.call('HGET', J .. key, 'state') ~= QUEUED then
        unline(key, prio, group)
      else
        local name = group and held_back(key, group, at_text)
        if not name then return key, group, owner end
        park(prio, owner, group, name)
        looks_left = looks_left - 1
        if looks_left == 0 then return end
        let_in()
      end
    end
  end

  -- Hand out jobs by the rules: `admitted(key, number)` asks the limit of the queue, `claim(key, number)` hands one out, which
  -- makes `more()` false when there are enough.
  function take_by_rules(at, at_text, more, admitted, claim)
    local weights, passes = rules.weights, nil
    if weights then
      passes = redis.call('HMGET', Q .. 'passes', 1, 2, 3, 4)
      for prio = 1, 4 do passes[prio] = tonumber(passes[prio] or '0') end
    end
    while more() do
      local level, found = nil, {}
      for prio = 1, 4 do
        local key, group, owner = next_of(prio, at_text)
        if key then
          found[prio] = {key, group, owner}
          if not level or (weights and passes[prio] < passes[level]) then level = prio end
          if not weights then break end
        end
      end
      if not level or looks_left == 0 then break end
      local key, group, owner = unpack(found[level])
      local number = redis.call('INCR', Q .. 'seq')
      if limit > 0 and not admitted(key, number) then break end
      if group and rules.fair then had_turn(level, owner) end
      unline(key, level, group)
      if group then
        if rules.tenant_rate then enter_window(key, cjson.decode(group)[2], number, at) end
        start_running(key, counted_as(group))
      end
      claim(key, number)
      let_in()
      if weights then
        for prio = 1, 4 do
          if not found[prio] then passes[prio] = math.max(passes[prio], passes[level]) end
        end
        passes[level] = passes[level] + 1 / weights[level]
      end
    end
    for prio = 1, weights and 4 or 0 do
      redis.call('HSET', Q .. 'passes', prio, string.format('%.17g', passes[prio]))
    end
  end

  -- Whether something may be there that nobody has found to be held back.
  function may_be_more()
    for prio = 1, 4 do
      local _, score = first(Q .. (arrangement and 'turns:' or 'queued:') .. prio)
      if score and (score < PARKED or not arrangement) then return true end
      if arrangement and redis.call('EXISTS', Q .. 'behind:' .. prio) == 1 then return true end
    end
    return false
  end
end
