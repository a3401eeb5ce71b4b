-- This writes the level, see limit_level.lua, for ttl milliseconds.
local second, micros = (whole - whole % 1000000) / 1000000, whole % 1000000
call('SET', key, string.format(part == 0 and '%d%06d' or '%d%06d:%.0f', second, micros, part), 'PX', ttl)
