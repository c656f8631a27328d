-- promote: scheduled -> queued for what is due (take does it too; this is for an idle queue that somebody asks to tick).
-- Returns the keys that joined the line.
local due = promote(now())
if #due > 0 then wake() end
return due
