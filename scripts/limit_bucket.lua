-- The token bucket: the generic cell rate algorithm (ITU-T I.371), whose whole state
-- is the level, see limit_level.lua. Arguments and reply are those of limit_take.lua;
-- ttl is that of limit_fill.lua.
--
-- One permit moves the level by window/limit, which need not be a whole number.
-- It is counted in step + rest/limit, so all sums are of integers below 2^53 and
-- nothing is ever rounded; but for the first guess of left, which is then put
-- right by exact steps.
--
-- It calls TIME, GET, and INCRBY or SET. A denial writes nothing, except that a level
-- further ahead than a window, left by a clock that stepped back, becomes one window.
--
-- The marks are whole and part after the permits granted.
-- include limit_now.lua
window = window + 0
-- include limit_level.lua
local edge, ahead = now + window, false
if whole > edge or whole == edge and part > 0 then
  if string.find(raw, '[^%d:]') then call('INCRBY', key, 0) end -- fails: this is no level
  whole, part, ahead = edge, 0, true
end
local rest, room = window % limit, edge - whole -- a permit is step + rest/limit
local step, left = (window - rest) / limit, nil
if rest == 0 and part == 0 then
  left = (room - room % step) / step
else
  left = math.floor(room * limit / window) + 1
  while left > 0 and left * step + math.ceil((part + left * rest) / limit) > room do
    left = left - 1
  end
end
local unit, granted, retry = cost > 0 and cost or 1, n, 0
if unit * n > left then
  granted = math.floor(left / unit)
  if cost == 0 and granted > 0 then granted = n end
end
local spent = dry and 0 or granted * cost
if spent > 0 or ahead then
  part = part + spent * rest
  whole = whole + spent * step + (part - part % limit) / limit
  part = part % limit
  -- include limit_fill.lua
end
if granted < n then
  retry = unit > limit and -1 or whole + unit * step + math.ceil((part + unit * rest) / limit) - edge
end
return pack('>ddddddd', granted, left - spent, retry, whole - now + (part > 0 and 1 or 0), now, whole, part)
