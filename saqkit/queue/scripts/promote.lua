-- promote: scheduled -> queued for what is due (take does it too; this is for an idle queue that somebody asks to tick).
-- ARGV: tick_s (left out: 0.2)
-- Returns the keys that joined the line.
local due = promote(now(), tonumber(ARGV[1] or '0.2'))
if #due > 0 then wake() end
return due
