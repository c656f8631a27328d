-- enqueue: absent (or ended) -> queued, or -> scheduled where the job has a due time.
-- ARGV: tick, call (a name that is used once), the caller's clock,
--       then for each job: key, body, prio, due (on the caller's clock; 0: none; =: and a time of the server's), users,
--       keep (s its key stays taken after it is done; and where it is unique: s its id is taken at least, until when
--       beyond that: s it starts, e it ends, t no longer; the id)
--       or, where only key and body differ: '', prio, due, users, keep, then for each job: key, body
--       A call named "fire KNOWN MARK SCHEDULE" brings the jobs of a schedule's firings up to MARK: it does nothing unless
--       the last that was dealt with is the one that the caller knew (-: none).
--       A call named "batch ID NAME" brings members of a batch: it does nothing (returns nothing) unless that is open.
-- Returns for each job 1 (also where this very call is repeated), or 0 where a job of that key lives or is still kept, or the key
-- of the job that has its unique id.
local at, tick, call, clock = now(), tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local at_text, accepted, lines, added = text(at), {}, {}, false
-- A delay lasts as long as its producer meant. Where the clocks agree, a due time is the time itself.
local ahead = math.abs(clock - at) > 0.05 and clock - at or 0
local known, mark, schedule = string.match(call, '^fire (%S+) (%S+) (.+)$')
if schedule then
  local last = redis.call('HGET', Q .. 'schedules', schedule) or '-'
  if last ~= known or tonumber(mark) > at then return {} end
  redis.call('HSET', Q .. 'schedules', schedule, mark)
end
local batch, named = string.match(call, '^batch (%S+) (%S+)$')
if batch then
  if redis.call('HGET', Q .. 'batch:' .. batch, 'open') ~= '1' then return {} end
  call = named
  following()
end
local alike = ARGV[4] == ''
local first, step = alike and 9 or 4, alike and 2 or 6
local many = (#ARGV - first + 1) / step
local place = redis.call('INCRBY', Q .. 'seq', many) - many

local function add(key, body, prio, name, users, keep, ...)
  local fields = {'body', body, 'prio', prio, 'at_q', at_text, 'enq', name, ...}
  if users ~= '0' then fields[#fields + 1] = 'users'; fields[#fields + 1] = users end
  if keep ~= '0' then fields[#fields + 1] = 'keep'; fields[#fields + 1] = keep end
  redis.call('HSET', J .. key, unpack(fields))
end

local function take_id(id, key, least, mode)
  redis.call('HSET', Q .. 'unique', id, text(at + tonumber(least)) .. ' ' .. mode .. ' ' .. key)
  redis.call('HSET', J .. key, 'unique', id)
  look_over_ids(2, at)
end

local function flush(prio)
  redis.call('ZADD', Q .. 'queued:' .. prio, unpack(lines[prio]))
  lines[prio] = nil
end

local prio, due, users, keep = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
for i = first, #ARGV, step do
  local key, body = ARGV[i], ARGV[i + 1]
  if not alike then prio, due, users, keep = ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5] end
  local name = call .. '.' .. i
  local old = redis.call('HMGET', J .. key, 'state', 'until', 'enq')
  local stays, least, mode, id = keep
  if keep ~= '0' and string.find(keep, ' ', 1, true) then
    stays, least, mode, id = string.match(keep, '^(%S+) (%S+) (%a) (.+)$')
  end
  local twin = id and taken_by(id, at)
  place = place + 1
  if old[3] == name or (batch and old[1] and in_batch(batch, key)) then -- also a member that has ended by now
    accepted[#accepted + 1] = 1
  elseif key_is_taken(old[1], old[2], at) then
    accepted[#accepted + 1] = 0
  elseif twin then
    accepted[#accepted + 1] = twin
  else
    make_room(key, old[1])
    if due ~= '0' then
      local fixed = string.sub(due, 1, 1) == '='
      local wakes = fixed and string.sub(due, 2) or ahead == 0 and due or text(tonumber(due) - ahead)
      local ready = text(on_tick(tonumber(wakes), tick))
      if tonumber(wakes) <= at then -- no tick to wait for; what was due first still comes first
        wakes, ready = text(math.min(tonumber(wakes), last_tick(at, tick))), at_text
      end
      add(key, body, prio, name, users, stays, 'state', SCHEDULED, 'at_r', ready)
      redis.call('ZADD', Q .. 'incomplete', wakes, ID .. key)
    else
      if arranged() then
        local group = group_of(body)
        add(key, body, prio, name, users, stays, 'state', QUEUED, 'seq', place, 'grp', group)
        join(key, prio, place, group)
      else
        add(key, body, prio, name, users, stays, 'state', QUEUED, 'seq', place)
      end
      local line = lines[prio] or {}
      lines[prio] = line
      line[#line + 1] = place
      line[#line + 1] = key
      if #line >= 2000 then flush(prio) end
    end
    if id then take_id(id, key, least, mode) end
    if batch then joins_batch(batch, key, users) end
    accepted[#accepted + 1] = 1
    added = true
  end
end
for prio in pairs(lines) do flush(prio) end
if added then wake() end
return accepted
