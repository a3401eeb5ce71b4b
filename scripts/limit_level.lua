-- The level of a token bucket is the time at which it will be full again: whole +
-- part/limit microseconds, part < limit, kept as "whole" or "whole:part". This reads
-- it from key into raw (false if there is none), whole and part: now if that is later.
-- stored is the level as it is kept, nil if that has a part.
local raw, whole, part, stored = call('GET', key), now, 0, nil
if raw then
  stored = tonumber(raw)
  if stored then
    whole = stored
  else
    whole, part = string.match(raw, '^(%d+):(%d+)$')
    whole, part = tonumber(whole) or call('INCRBY', key, 0), tonumber(part) -- INCRBY fails
    if part >= limit then whole, part = whole + 1, 0 end -- left by another limit
  end
  if not (whole >= now) then whole, part = now, 0 end
end
