-- The level is read into raw (false if there is none), whole and part: now if that is
-- later. stored is what stands there if that is a plain number, and kept the end of the ten
-- seconds of the clock that it lies in: before that the key does not expire. lent says that
-- permits have been promised that are not there yet.
local raw, whole, part, lent, stored, kept = call('GET', key), now, 0, nil, nil, 0
if raw then
  stored = tonumber(raw)
  whole = stored
  if not stored then
    whole, part, lent = string.match(raw, '^(%d+):(%d+)(:?l?)$')
    whole, part = tonumber(whole) or call('INCRBY', key, 0), tonumber(part) -- INCRBY fails
  end
  kept = whole - whole % 10000000 + 10000000
  if part >= limit then whole, part = whole + 1, 0 end -- left by another limit
  if not (whole >= now) then whole, part = now, 0 end
end
