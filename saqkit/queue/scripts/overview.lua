-- overview: how many jobs are where, since when the oldest of each level waits, and what operators decided. Reads only.
-- Returns {server time, paused, slots, recording (each empty if it is not so), scheduled, active, dead, outgoing,
--          for each of the four levels: how many wait, since when the one that waits longest could be taken (or empty),
--          then the counters: name, number, ...}

-- Whoever joined a line later could be taken later, but for those that were given back to their old places.
local function oldest(line)
  local since
  for first = 0, 900, 100 do
    local keys = redis.call('ZRANGE', line, first, first + 99)
    for _, key in ipairs(keys) do
      local f = redis.call('HMGET', J .. key, 'at_q', 'at_r', 'rel', 'crash')
      local ready = tonumber(f[2] or f[1] or '')
      if ready and (not since or ready < since) then since = ready end
      if ready and not f[3] and not f[4] then return since end
    end
    if #keys < 100 then break end
  end
  return since
end

local said = {text(now())}
for _, name in ipairs({Q .. 'paused', Q .. 'slots', Q .. 'recording'}) do said[#said + 1] = redis.call('GET', name) or '' end
for _, name in ipairs({Q .. 'incomplete', Q .. 'leases', Q .. 'dead', Q .. 'outgoing'}) do
  said[#said + 1] = redis.call('ZCARD', name)
end
for prio = 1, 4 do
  local line = Q .. 'queued:' .. prio
  local since = oldest(line)
  said[#said + 1] = redis.call('ZCARD', line)
  said[#said + 1] = since and text(since) or ''
end
for _, fact in ipairs(redis.call('HGETALL', Q .. 'counts')) do said[#said + 1] = fact end
return said
