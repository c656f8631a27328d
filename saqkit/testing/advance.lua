-- advance: let seconds pass for a queue, by moving every time that is stored of it. For tests; no transition.
-- ARGV: seconds
--
-- | moved back              | Q incomplete, Q leases, Q dead, Q outgoing, Q window, Q tenant:<t>, Q closed: scores;     |
-- |                         | Q stats (in ms), Q batches;                                                              |
-- |                         | J <key>: at_q, at_r, at_t, at_e, until                                                   |
-- |                         | Q unique: how long an id is taken; Q schedules: the last firing, so that others are due    |
-- | shortened               | the time to live of every key of the queue, so of Q taken:<who>, Q aborted:<key>, ended  |
-- |                         | jobs, Q used:<t>, Q batch:<id> and Q worker_info:<id>; what expires is gone             |
-- | set to now              | Q alive: the server was up and heard of, so leases did expire (else: `contact`)          |
-- | left: no time           | Q queued:1..4, Q seq, Q weight, Q slots, Q counts, Q recording, Q wake, Q settings,       |
-- |                         | Q passes, Q arranged, Q line:<p>:<g>, Q heads:<p>:<o>, Q turns:1..4, Q circle:1..4, Q left:1..4, |
-- |                         | Q behind:1..4, Q wait:<p>:<n>, Q waits, Q running, Q freed                                                |
-- | left: history           | Q trace, Q paused (since when), and the body of a job                                    |
local seconds, at = tonumber(ARGV[1]), now()

local function move(zset)
  local found = redis.call('ZRANGE', zset, 0, -1, 'WITHSCORES')
  for i = 1, #found, 2 do
    local score = tonumber(found[i + 1])
    local moved = zset == Q .. 'leases' and string.format('%d', score - seconds * 1000) or text(score - seconds)
    redis.call('ZADD', zset, moved, found[i])
  end
end

for _, name in ipairs({'incomplete', 'leases', 'dead', 'outgoing', 'window', 'closed', 'batches'}) do move(Q .. name) end

local function each(prefix, visit)
  local cursor, pattern, seen = '0', string.gsub(prefix, '[%*%?%[%]\\]', '\\%0') .. '*', {}
  repeat
    local page = redis.call('SCAN', cursor, 'MATCH', pattern, 'COUNT', 1000)
    cursor = page[1]
    for _, key in ipairs(page[2]) do
      if not seen[key] then visit(key) end
      seen[key] = true  -- a scan may show a key twice
    end
  until cursor == '0'
end

local function shorten(key)
  local left = redis.call('PTTL', key)
  if left >= 0 then redis.call('PEXPIRE', key, math.floor(left - seconds * 1000)) end  -- at or below 0: deleted
end

each(Q, shorten)
each(Q .. 'tenant:', move)
each(J, function(key)
  shorten(key)
  for _, name in ipairs({'at_q', 'at_r', 'at_t', 'at_e', 'until'}) do
    local time = redis.call('HGET', key, name)
    if time then redis.call('HSET', key, name, text(tonumber(time) - seconds)) end
  end
end)

local function rewrite(name, moved)
  local found = redis.call('HGETALL', Q .. name)
  for i = 1, #found, 2 do redis.call('HSET', Q .. name, found[i], moved(found[i + 1])) end
end

rewrite('unique', function(entry)
  local ends, rest = string.match(entry, '^(%S+) (.*)$')
  return text(tonumber(ends) - seconds) .. ' ' .. rest
end)
rewrite('schedules', function(mark) return string.format('%d', math.floor(tonumber(mark) - seconds)) end)

local workers = redis.call('ZRANGE', Q .. 'stats', 0, -1, 'WITHSCORES')
for i = 1, #workers, 2 do
  redis.call('ZADD', Q .. 'stats', tonumber(workers[i + 1]) - seconds * 1000, workers[i])
end

redis.call('SET', Q .. 'alive', text(at))
wake()
