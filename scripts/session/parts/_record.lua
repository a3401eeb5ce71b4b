local lifetime, idle = times('>I7I7', life, 1)
local deadline = keeps > 0 and keeps or now + lifetime
if deadline <= now then
  return {now, 0, ''}
end
local ends = idle > 0 and math.min(deadline, now + idle) or deadline
local when = pack('>I7I7I7I7', now, deadline, now, ends) .. life:sub(22)
