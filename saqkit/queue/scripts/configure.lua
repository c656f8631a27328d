-- configure: what the processes of a queue were started with is overridden, from their next `take` on. No transition.
-- ARGV: JSON of what changes (see choosing.lua); empty: all is again as it was started with; left out: only read
-- Returns what is overridden now, as JSON with its version; empty if nothing is.
if not ARGV[1] then return redis.call('GET', Q .. 'settings') or '' end
if ARGV[1] == '' then
  redis.call('DEL', Q .. 'settings')
  wake()
  return ''
end
local all = cjson.decode(redis.call('GET', Q .. 'settings') or '{"version":0}')
for name, value in pairs(cjson.decode(ARGV[1])) do all[name] = value end
all.version = all.version + 1
local stored = cjson.encode(all)
redis.call('SET', Q .. 'settings', stored)
wake()
return stored
