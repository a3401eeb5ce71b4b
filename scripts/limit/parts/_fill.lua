-- The level is written. PX gives it an expiry ttl milliseconds from now: as far as a level
-- can be ahead and ten seconds, and so no earlier than the end of the ten seconds of the
-- clock in which the level lies. Until it gets beyond them it needs no other, and mostly
-- INCRBY is enough, at half the price. Ten are the same for all limits, since several may
-- share a key.
local near, loan = whole < kept, whole > full or whole == full and part > 0
if near and stored and part == 0 and not loan then
  call('INCRBY', key, whole - stored)
else
  local second, micros = (whole - whole % 1000000) / 1000000, whole % 1000000
  local level = string.format((loan and '%d%06d:%.0f:l') or part == 0 and '%d%06d' or '%d%06d:%.0f', second, micros, part)
  if near then call('SET', key, level, 'KEEPTTL') else call('SET', key, level, 'PX', ttl) end
end
