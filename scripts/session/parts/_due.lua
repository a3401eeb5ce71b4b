-- A sweep is due when there are 16 fields, and twice as many as the last one left.
local n = call('HLEN', key)
local due = n >= 16 and n >= 2 * (tonumber(call('HGET', key, 's')) or 8)
