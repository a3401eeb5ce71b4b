local lifetime, idle = times('>I7I7', ARGV[4], 1)
local deadline = now + lifetime
if ARGV[5] ~= '0' then
  deadline = tonumber(ARGV[5])
end
if deadline <= now then
  return {now, 0, ''}
end
local ends = deadline
if idle > 0 then
  ends = math.min(deadline, now + idle)
end
local when = pack('>I7I7I7I7', now, deadline, now, ends) .. ARGV[4]:sub(22)
