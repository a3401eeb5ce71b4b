local deadline, idle = now + ARGV[4], tonumber(ARGV[5])
if ARGV[6] ~= '0' then
  deadline = tonumber(ARGV[6])
end
if deadline <= now then
  return {now, 0, ''}
end
local ends = deadline
if idle > 0 then
  ends = math.min(deadline, now + idle)
end
local when = pack('>I7I7I7I7', now, deadline, now, ends) .. string.char(select(2, math.frexp(step)))
