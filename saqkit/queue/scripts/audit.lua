-- audit: is every job that a line names in exactly one place, with the state of that place? Reads only.
-- Returns {queued, scheduled, active, dead, outgoing, problem, problem, ...}
local seen, counts, problems = {}, {0, 0, 0, 0, 0}, {}
local function visit(name, state, place)
  for _, key in ipairs(redis.call('ZRANGE', Q .. name, 0, -1)) do
    counts[place] = counts[place] + 1
    if state == SCHEDULED then key = string.sub(key, #ID + 1) end
    local is = redis.call('HGET', J .. key, 'state')
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
return {counts[1], counts[2], counts[3], counts[4], counts[5], unpack(problems, 1, math.min(#problems, 1000))}
