-- This writes the level, see limit_level.lua. SET gives it an expiry, ttl milliseconds
-- from now: at least a window and ten seconds, and so no earlier than the end of the ten
-- seconds of the clock in which the level is. While it stays in them INCRBY is enough, at
-- half the price. Ten are the same for all limits, since several may share a key.
if stored and part == 0 and stored - stored % 10000000 == whole - whole % 10000000 then
  call('INCRBY', key, whole - stored) -- seven digits at most
else
  local second, micros = (whole - whole % 1000000) / 1000000, whole % 1000000
  call('SET', key, string.format(part == 0 and '%d%06d' or '%d%06d:%.0f', second, micros, part), 'PX', ttl)
end
