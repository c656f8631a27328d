-- What follows when a job ends: the jobs that its attempt has asked for, and what its batch makes of it.
-- Put behind lines.lua, in front of the scripts that end jobs, and of those that change who is in a batch.
--
-- A batch counts its members by what has become of them; it cannot be out of step with them, because the very call that
-- ends a member counts it, and enqueues what the batch is to call back. Fields of the hash Q batch:<id>:
--
-- | field                            | holds                                                                     |
-- |----------------------------------|---------------------------------------------------------------------------|
-- | open                             | 1 while members may be added, else 0                                      |
-- | jobs, ended                      | members; those of them that have ended once at least                      |
-- | pending, done, dead, cancelled,  | members that are so now; gone: dead letters that were removed, or moved   |
-- | gone                             | into another queue                                                        |
-- | users, <each of these>_users     | their weight: users, 1 for a member that has none                         |
-- | at, complete, success, death     | when it was opened, and when each of the events happened                  |
-- | on_<event>, body_<event>         | the callback: JSON of {queue (empty: this one), key, prio, users, keep}   |
-- | keep, keep_dead                  | how long it is known (s) when no member is pending; while some are dead   |
--
-- A member's field `batch` is its weight, the batch, and "again" once it has been replayed.
local posted = false -- whether something was put on its way into another queue

-- Whether a key is taken, by the state of its job and until when it is kept: by a job that lives, or one that has ended.
local function key_is_taken(state, kept, at)
  local live = state == QUEUED or state == SCHEDULED or state == ACTIVE or state == OUTGOING
  return live or (kept and tonumber(kept) > at)
end

-- A job that has ended (its state; false: there is none) makes room for one of its key.
local function make_room(key, state)
  if not state then return end
  if redis.call('ZREM', Q .. 'dead', key) == 1 then
    count('superseded')
    leaves_batch(key)
  end
  redis.call('DEL', J .. key)
end

-- Made only where a job has followers or a batch, as the groups are (see lines.lua).
local start, settle, batch_of, changes, joins_batch, in_batch, ends_in_batch, returns_to_batch
local function following()
  if start then return end

  -- Nobody asks for this job but the server itself: it joins the line, unless its key is taken.
  local function enter(at, name, key, body, prio, users, keep)
    local old = redis.call('HMGET', J .. key, 'state', 'until')
    if key_is_taken(old[1], old[2], at) then return end
    make_room(key, old[1])
    redis.call('HSET', J .. key, 'body', body, 'prio', prio, 'at_q', text(at), 'enq', name)
    if users ~= '0' then redis.call('HSET', J .. key, 'users', users) end
    if keep ~= '0' then redis.call('HSET', J .. key, 'keep', keep) end
    line_up(key, prio)
    wake()
  end

  -- A job for another queue, which may lie on another node: `relay` delivers it (see deliver.lua), the name makes it one.
  local function post(at, name, to, key, body, prio, users, keep)
    local entry = '>' .. to .. '>' .. key
    if redis.call('EXISTS', J .. entry) == 1 then return end
    redis.call('HSET', J .. entry, 'state', OUTGOING, 'to', to, 'to_key', key, 'to_body', body, 'to_users', users,
               'prio', prio, 'keep', keep, 'move', name)
    redis.call('ZADD', Q .. 'outgoing', text(at), entry)
    posted = true
  end

  -- `to`: the queue, empty for this one.
  function start(at, name, to, ...)
    if to == '' then enter(at, name, ...) else post(at, name, to, ...) end
  end

  local function happens(batch, id, event, at)
    if redis.call('HSETNX', batch, event, text(at)) == 0 then return end
    local facts = redis.call('HGET', batch, 'on_' .. event)
    if not facts then return end
    local to, key, prio, users, keep = unpack(cjson.decode(facts))
    start(at, event .. ' ' .. id, to, key, redis.call('HGET', batch, 'body_' .. event), prio, users, keep)
  end

  -- A batch that is closed: have all ended, are all done, and for how long is it still to be known?
  function settle(batch, id, at)
    local f = redis.call('HMGET', batch, 'open', 'jobs', 'ended', 'done', 'pending', 'dead', 'keep', 'keep_dead')
    if f[1] ~= '0' then return end
    if f[3] == f[2] then happens(batch, id, 'complete', at) end
    if f[4] == f[2] then happens(batch, id, 'success', at) end
    if f[5] == '0' then
      local stays = math.ceil(math.max(tonumber(f[7]), f[6] ~= '0' and tonumber(f[8]) or 0))
      expire(batch, stays)
      redis.call('ZADD', Q .. 'batches', text(at + stays), id)
    end
  end

  -- Of a member's field: its weight, the key of its batch if there still is one, the batch, "again" or ''.
  function batch_of(member)
    local weight, id, again = string.match(member, '^(%d+) (%S+) ?(.*)$')
    local batch = Q .. 'batch:' .. id
    return weight, redis.call('EXISTS', batch) == 1 and batch, id, again
  end

  function changes(batch, weight, from, to)
    redis.call('HINCRBY', batch, from, -1)
    redis.call('HINCRBY', batch, from .. '_users', -weight)
    redis.call('HINCRBY', batch, to, 1)
    redis.call('HINCRBY', batch, to .. '_users', weight)
  end

  function joins_batch(id, key, users)
    local batch, weight = Q .. 'batch:' .. id, math.max(1, tonumber(users))
    redis.call('HSET', J .. key, 'batch', weight .. ' ' .. id)
    redis.call('HINCRBY', batch, 'jobs', 1)
    redis.call('HINCRBY', batch, 'pending', 1)
    redis.call('HINCRBY', batch, 'users', weight)
    redis.call('HINCRBY', batch, 'pending_users', weight)
  end

  function in_batch(id, key)
    local member = redis.call('HGET', J .. key, 'batch')
    return member and string.match(member, '^%d+ (%S+)') == id
  end

  -- A member (its field; nil: it is none) has ended and is now done, dead or cancelled.
  function ends_in_batch(member, what, at)
    if not member then return end
    local weight, batch, id, again = batch_of(member)
    if not batch then return end
    changes(batch, weight, 'pending', what)
    if again == '' then redis.call('HINCRBY', batch, 'ended', 1) end
    if what == 'dead' then happens(batch, id, 'death', at) end
    settle(batch, id, at)
  end

  -- A member that was dead is to be done again.
  function returns_to_batch(member, key)
    if not member then return end
    local weight, batch, id = batch_of(member)
    redis.call('HSET', J .. key, 'batch', weight .. ' ' .. id .. ' again')
    if not batch then return end
    changes(batch, weight, 'dead', 'pending')
    redis.call('PERSIST', batch)
    redis.call('ZADD', Q .. 'batches', '+inf', id)
  end
end

local any_batch -- asked once a call
leaves_batch = function(key) -- declared in keys.lua
  if any_batch == nil then any_batch = redis.call('EXISTS', Q .. 'batches') == 1 end
  local member = any_batch and redis.call('HGET', J .. key, 'batch')
  if not member then return end
  following()
  local weight, batch = batch_of(member)
  if batch then changes(batch, weight, 'dead', 'gone') end
end
