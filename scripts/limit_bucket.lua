-- bucket decides by the generic cell rate algorithm (ITU-T I.371), whose whole
-- state is the time at which the bucket will be full again. Arguments and
-- results are documented in limit_take.lua; ttl is a window and a millisecond.
--
-- One permit moves that time by window/limit, which need not be a whole number:
-- the time is whole+part/limit microseconds, part < limit, kept as "whole" or
-- "whole:part". All steps are integers below 2^53, so nothing is ever rounded;
-- only s*limit below may be, and its result is then corrected by exact steps.
--
-- It calls GET and SET. A denial writes nothing, except that a time further
-- ahead than a window, left by a clock that stepped back, becomes one window.
--
-- The marks are whole and part after the permits granted.
local function bucket(key, limit, window, ttl, cost, n, now, dry)
  now = now or clock()
  local raw, edge, changed = call('GET', key), now + window, false
  local whole, part = now, 0
  if raw then
    whole = tonumber(raw)
    if not whole then
      whole, part = string.match(raw, '^(%d+):(%d+)$')
      whole, part = tonumber(whole) or call('INCRBY', key, 0), tonumber(part)
      if part >= limit then whole, part = whole + 1, 0 end -- of another limit
    end
    if whole < now then whole, part = now, 0 end
    if whole > edge or whole == edge and part > 0 then whole, part, changed = edge, 0, true end
  end
  local step = math.floor(window / limit)
  local rest = window - step * limit -- one permit is step + rest/limit
  local left = math.floor((edge - whole) / step)
  if rest > 0 or part > 0 then
    left = math.floor((edge - whole) * limit / window) + 1
    while left > 0 and (left * step + math.ceil((part + left * rest) / limit)) > edge - whole do
      left = left - 1
    end
  end
  local unit = cost > 0 and cost or 1
  local granted = math.max(0, math.min(n, math.floor(left / unit)))
  if cost == 0 and granted > 0 then granted = n end
  local spent = dry and 0 or granted * cost
  if spent > 0 or changed then
    part = part + spent * rest
    whole = whole + spent * step + math.floor(part / limit)
    part = part % limit
    call('SET', key, part == 0 and whole or string.format('%.0f:%.0f', whole, part), 'PX', ttl)
  end
  local retry = 0
  if granted < n then
    retry = unit > limit and -1 or whole + unit * step + math.ceil((part + unit * rest) / limit) - edge
  end
  return granted, left - spent, retry, whole + math.ceil(part / limit) - now, now, whole, part
end
