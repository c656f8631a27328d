-- batch: a batch of jobs is opened, closed (nothing can be added any more), or given up. No transition of a job.
-- ARGV: open, id, how long it is known when no member is pending (s), the same while some are dead (s),
--             then for each callback: event, JSON of {queue, key, prio, users, keep}, body
--       close, id
--       drop, id: if it has no member
-- Returns 1 if this call has done it (3: and something is on its way into another queue), 2 if it was so before,
-- 0 if it cannot be: to open one that is closed, to close one that is not known, to drop one with members.
local at, what, id = now(), ARGV[1], ARGV[2]
local batch = Q .. 'batch:' .. id
local f = redis.call('HMGET', batch, 'open', 'jobs')
if what == 'open' then
  if f[1] then return f[1] == '1' and 2 or 0 end
  local fields = {'open', '1', 'jobs', '0', 'users', '0', 'ended', '0', 'at', text(at), 'keep', ARGV[3], 'keep_dead', ARGV[4]}
  for _, state in ipairs({'pending', 'done', 'dead', 'cancelled', 'gone'}) do
    for _, name in ipairs({state, state .. '_users'}) do
      fields[#fields + 1] = name
      fields[#fields + 1] = '0'
    end
  end
  redis.call('HSET', batch, unpack(fields))
  for i = 5, #ARGV, 3 do redis.call('HSET', batch, 'on_' .. ARGV[i], ARGV[i + 1], 'body_' .. ARGV[i], ARGV[i + 2]) end
  redis.call('ZREMRANGEBYSCORE', Q .. 'batches', '-inf', text(at))
  redis.call('ZADD', Q .. 'batches', '+inf', id)
  return 1
end
if what == 'drop' then
  if f[2] ~= '0' then return 0 end
  redis.call('DEL', batch)
  redis.call('ZREM', Q .. 'batches', id)
  return 1
end
if not f[1] then return 0 end
if f[1] == '0' then return 2 end
redis.call('HSET', batch, 'open', '0')
following()
settle(batch, id, at)
return posted and 3 or 1
