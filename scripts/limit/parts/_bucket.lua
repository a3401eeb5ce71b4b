window = window + 0
-- include _level.lua
local full, ahead = now + window, false
if (whole > full or whole == full and part > 0) and (lent ~= ':l' or whole - full > window) then
  if string.find(raw, '[^%d:l]') then call('INCRBY', key, 0) end -- fails: this is no level
  whole, part, ahead = full, 0, true
end
local rest, room = window % limit, full + patience - whole -- a permit is step + rest/limit
local step, left = (window - rest) / limit, nil
if rest == 0 and part == 0 then
  left = (room - room % step) / step
else
  left = math.floor(room * limit / window) + 1
  while left > 0 and left * step + math.ceil((part + left * rest) / limit) > room do
    left = left - 1
  end
end
if left < 0 then left = 0 end
local unit, granted, retry = cost > 0 and cost or 1, n, 0
if unit * n > left then
  granted = math.floor(left / unit)
  if cost == 0 and granted > 0 then granted = n end
end
local spent, before, beforePart = dry and 0 or granted * cost, whole, part
if spent > 0 or ahead then
  part = part + spent * rest
  whole = whole + spent * step + (part - part % limit) / limit
  part = part % limit
  -- include _fill.lua
end
if brief then return granted, now, before, beforePart, 0 end
if granted < n then
  retry = unit > limit and -1 or whole + unit * step + math.ceil((part + unit * rest) / limit) - full
elseif patience > 0 then
  retry = math.max(0, whole + (part > 0 and 1 or 0) - full)
end
return pack('>ddddddd', granted, left - spent, retry, whole - now + (part > 0 and 1 or 0), now, whole, part)
