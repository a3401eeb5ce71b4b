-- The level of a token bucket is the time at which it will be full again: whole +
-- part/limit microseconds, part < limit, kept as "whole" or "whole:part".

-- level returns the string at key (or false), whole and part: now if that is later.
local function level(key, limit, now)
  local raw = call('GET', key)
  if not raw then return raw, now, 0 end
  local whole, part = tonumber(raw), 0
  if not whole then
    whole, part = string.match(raw, '^(%d+):(%d+)$')
    whole, part = tonumber(whole) or call('INCRBY', key, 0), tonumber(part) -- INCRBY fails
    if part >= limit then whole, part = whole + 1, 0 end -- left by another limit
  end
  if not (whole >= now) then whole, part = now, 0 end
  return raw, whole, part
end

local function fill(key, whole, part, ttl)
  call('SET', key, part == 0 and whole or string.format('%.0f:%.0f', whole, part), 'PX', ttl)
end
