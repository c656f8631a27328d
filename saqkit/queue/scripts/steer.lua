-- steer: what an operator decides for every process that serves the queue. No transition.
-- ARGV: what (paused, slots, recording), its value (empty: it is no longer so)
--       paused: JSON of who and why; slots: how many each process has; recording: how many attempts are kept (1: all)
-- Returns what it was before, empty if it was not.
local at, name = now(), Q .. 'paused'
if ARGV[1] == 'slots' then name = Q .. 'slots' elseif ARGV[1] == 'recording' then name = Q .. 'recording' end
local before, value = redis.call('GET', name) or '', ARGV[2]
if ARGV[1] == 'recording' and before == '1' then return before end -- a measured run reads all of it, to the end
if value == '' then
  redis.call('DEL', name)
  if ARGV[1] == 'recording' then redis.call('DEL', Q .. 'trace') end
  if ARGV[1] == 'paused' and before ~= '' then wake() end
elseif ARGV[1] == 'paused' then -- it is paused since it was first
  redis.call('SET', name, (string.match(before, '^[%d.]+ ') or text(at) .. ' ') .. value)
else
  redis.call('SET', name, value)
end
return before
