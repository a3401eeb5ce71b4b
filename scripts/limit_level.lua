-- The level of a token bucket is the time at which it will be full again: whole +
-- part/limit microseconds, part < limit, kept as "whole" or "whole:part". This reads
-- it from key into raw (false if there is none), whole and part: now if that is later.
-- stored is what stands there if that is a plain number, and kept the end of the ten
-- seconds of the clock that it lies in: before that the key does not expire.
local raw, whole, part, stored, kept = call('GET', key), now, 0, nil, 0
if raw then
  stored = tonumber(raw)
  whole = stored
  if not stored then
    whole, part = string.match(raw, '^(%d+):(%d+)$')
    whole, part = tonumber(whole) or call('INCRBY', key, 0), tonumber(part) -- INCRBY fails
  end
  kept = whole - whole % 10000000 + 10000000
  if part >= limit then whole, part = whole + 1, 0 end -- left by another limit
  if not (whole >= now) then whole, part = now, 0 end
end
