-- audit: is every job that a line names in exactly one place, with the state of that place? Are its groups' lines, what is
-- parked, and the counts of running jobs as they should be? Reads only.
-- ARGV: none; or keys of jobs: is each of these that has not ended named by the line of its state, or is it lost?
-- Returns {queued, scheduled, active, dead, outgoing, problem, problem, ...}; where jobs are named {problem, ...}
if #ARGV > 0 then
  local problems = {}
  for _, key in ipairs(ARGV) do
    local kind = redis.call('TYPE', J .. key).ok
    local function check(right, problem)
      if not right then problems[#problems + 1] = key .. ' ' .. problem end
    end
    if kind == 'hash' then
      local state, prio, seq, body = unpack(redis.call('HMGET', J .. key, 'state', 'prio', 'seq', 'body'), 1, 4)
      local lines = {
        [QUEUED] = 'queued:' .. (prio or ''), [SCHEDULED] = 'incomplete', [ACTIVE] = 'leases', [DEAD] = 'dead', [OUTGOING] = 'outgoing',
      }
      local line = lines[state]
      if line then
        local score = redis.call('ZSCORE', Q .. line, state == SCHEDULED and ID .. key or key)
        check(score, 'is lost: it has state ' .. state .. ' and is not in ' .. line)
        check(not score or state ~= QUEUED or score == seq, 'is not at its place in ' .. line)
        check(body or state == OUTGOING, 'has no body')
        check(redis.call('PTTL', J .. key) == -1, 'has state ' .. state .. ' and will vanish')
      else
        check(state == DONE or state == CANCELLED, 'exists with ' .. (state and 'state ' .. state or 'no state'))
      end
    else
      check(kind == 'none', 'is a ' .. kind .. ' and no job') -- it may have ended since it was met
    end
  end
  return problems
end
local seen, counts, problems = {}, {0, 0, 0, 0, 0}, {}
local members = {} -- of each batch, by state: how many, and their weight
local function visit(name, state, place)
  for _, key in ipairs(redis.call('ZRANGE', Q .. name, 0, -1)) do
    counts[place] = counts[place] + 1
    if state == SCHEDULED then key = string.sub(key, #ID + 1) end
    local is, member = unpack(redis.call('HMGET', J .. key, 'state', 'batch'), 1, 2)
    if member then
      local weight, id = string.match(member, '^(%d+) (%S+)')
      local of, what = members[id] or {}, (is == DEAD or is == OUTGOING) and 'dead' or 'pending'
      of[what], of[what .. '_users'] = (of[what] or 0) + 1, (of[what .. '_users'] or 0) + tonumber(weight)
      members[id] = of
    end
    if seen[key] then problems[#problems + 1] = key .. ' is in ' .. seen[key] .. ' and in ' .. name end
    if not is then problems[#problems + 1] = key .. ' is in ' .. name .. ' but does not exist'
    elseif is ~= state then problems[#problems + 1] = key .. ' is in ' .. name .. ' with state ' .. is end
    seen[key] = name
  end
end
for prio = 1, 4 do visit('queued:' .. prio, QUEUED, 1) end
visit('incomplete', SCHEDULED, 2)
visit('leases', ACTIVE, 3)
visit('dead', DEAD, 4)
visit('outgoing', OUTGOING, 5)

local function check(right, problem)
  if not right then problems[#problems + 1] = problem end
end

local function ranked(name)
  local found, scores = redis.call('ZRANGE', Q .. name, 0, -1, 'WITHSCORES'), {}
  for i = 1, #found, 2 do scores[found[i]] = tonumber(found[i + 1]) end
  return scores
end

-- Each waiting job of a level stands in the line of its group, or will join it (`behind`).
local function visit_groups(prio, waiting_for)
  local level, joined = ranked('queued:' .. prio), {}
  for owner, turn in pairs(ranked('turns:' .. prio)) do
    local all_parked = true
    local heads = ranked('heads:' .. prio .. ':' .. owner)
    check(next(heads), 'owner ' .. owner .. ' has a turn in level ' .. prio .. ' and no group')
    for group, score in pairs(heads) do
      local name = 'line:' .. prio .. ':' .. group
      local _, place = first(Q .. name)
      check(place == score or place == score - PARKED, group .. ' has another first job than heads says')
      if score < PARKED then all_parked = false
      else check(waiting_for[prio .. group], group .. ' is parked in level ' .. prio .. ' and waits for nothing') end
      for key, seq in pairs(ranked(name)) do
        check(not joined[key], key .. ' is in two groups')
        check(redis.call('HGET', J .. key, 'grp') == group, key .. ' is in ' .. name .. ' but of another group')
        check(level[key] == seq, key .. ' is in ' .. name .. ' but not at that place in queued:' .. prio)
        joined[key] = true
      end
    end
    check(all_parked == (turn >= PARKED), 'the turn of owner ' .. owner .. ' in level ' .. prio .. ' is parked or not, wrongly')
  end
  local from, last = string.match(redis.call('GET', Q .. 'behind:' .. prio) or '', '^(%S+) (%S+)$')
  for _, key in ipairs(from and redis.call('ZRANGEBYSCORE', Q .. 'queued:' .. prio, from, last) or {}) do joined[key] = true end
  for key in pairs(level) do check(joined[key], key .. ' is in queued:' .. prio .. ' but in no group') end
end

if arranged() then
  local waiting_for, running = {}, {}
  for _, one in ipairs(redis.call('SMEMBERS', Q .. 'waits')) do
    local prio, name = string.sub(one, 1, 1), string.sub(one, 2)
    for group in pairs(ranked('wait:' .. prio .. ':' .. name)) do waiting_for[prio .. group] = true end
  end
  for prio = 1, 4 do visit_groups(prio, waiting_for) end
  for key in pairs(ranked('leases')) do
    for _, name in ipairs(cjson.decode(redis.call('HGET', J .. key, 'run') or '[]')) do
      running[name] = (running[name] or 0) + 1
    end
  end
  local told = redis.call('HGETALL', Q .. 'running')
  for i = 1, #told, 2 do
    check(running[told[i]] == tonumber(told[i + 1]), told[i] .. ': ' .. told[i + 1] .. ' are said to run')
    running[told[i]] = nil
  end
  check(not next(running), (next(running) or '') .. ' runs and is not counted')
end

-- Does each batch count what has become of its members, and has it called back what it should, and not yet more?
for _, id in ipairs(redis.call('ZRANGEBYSCORE', Q .. 'batches', text(now() + 1), '+inf')) do
  local of, told, f = members[id] or {}, {}, redis.call('HGETALL', Q .. 'batch:' .. id)
  for i = 1, #f, 2 do told[f[i]] = tonumber(f[i + 1]) or f[i + 1] end
  members[id] = nil
  check(told.open, 'batch ' .. id .. ' does not exist')
  if told.open then
    local jobs, users = 0, 0
    for _, state in ipairs({'pending', 'done', 'dead', 'cancelled', 'gone'}) do
      jobs, users = jobs + told[state], users + told[state .. '_users']
    end
    check(jobs == told.jobs and users == told.users, 'batch ' .. id .. ': its members do not add up')
    for _, what in ipairs({'pending', 'dead', 'pending_users', 'dead_users'}) do
      check(told[what] == (of[what] or 0), 'batch ' .. id .. ': ' .. what .. ' ' .. told[what] .. ', but there are ' .. (of[what] or 0))
    end
    check((told.complete ~= nil) == (told.open == 0 and told.ended == told.jobs), 'batch ' .. id .. ': complete or not, wrongly')
    check((told.success ~= nil) == (told.open == 0 and told.done == told.jobs), 'batch ' .. id .. ': a success or not, wrongly')
    check(told.death or told.dead + told.gone == 0, 'batch ' .. id .. ': nobody was told of a death')
  end
end
for id, of in pairs(members) do check(not of.pending, 'members of batch ' .. id .. ' are pending, which does not exist') end
return {counts[1], counts[2], counts[3], counts[4], counts[5], unpack(problems, 1, math.min(#problems, 1000))}
