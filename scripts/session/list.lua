-- Made of parts/list.lua. Change it there, then: go test ./scripts -update
--
-- Lists the sessions of a user.
--
-- KEYS[1]  the user's hash
--
-- Reply: {now, 1, "", {field, record, …}}, each record up to the end of the owner's box. now
-- is Redis's time in µs.
local call, key = redis.call, KEYS[1]
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- Times are seven bytes, big-endian. miniredis has no struct.
local struct = rawget(_G, 'struct')
local times = struct and struct.unpack or function(format, s, i)
  local out = {}
  for k = 1, (#format - 1) / 2 do
    out[k] = 0
    for j = i + 7 * k - 7, i + 7 * k - 1 do
      out[k] = out[k] * 256 + s:byte(j)
    end
  end
  return unpack(out)
end
-- A record without its values: up to the end of the owner's box.
local function cut(r)
  local at = r:byte(53) == 1 and 70 or 54
  if r:byte(2) % 4 == 3 then
    at = at + 22
  end
  local high, low = r:byte(at, at + 1)
  local salt = r:sub(3, 6) == '\0\0\0\0' and 0 or 4
  return r:sub(1, at + 1 + salt + (high or 0) * 256 + (low or 0))
end
-- Goes over what stands at the IDs of an owner. The hash's other fields are put into a list, if
-- there is one, and none of them is read. A hundred are read ahead: the loop may delete no field but
-- the one that it is at.
local function each(others)
  local fields, n, i, some = {}, 0, 0, nil
  for _, f in ipairs(call('HKEYS', key)) do
    if #f == 16 then
      n = n + 1
      fields[n] = f
    elseif others then
      others[#others + 1] = f
    end
  end
  return function()
    i = i + 1
    if i > n then
      return nil
    end
    if i % 100 == 1 then
      some = call('HMGET', key, unpack(fields, i, math.min(i + 99, n)))
    end
    return fields[i], some[(i - 1) % 100 + 1]
  end
end

local list = {}
for f, r in each() do
  if r:byte(1) == 1 and #r >= 53 and times('>I7', r, 45) > now then
    list[#list + 1] = f
    list[#list + 1] = cut(r)
  end
end
return {now, 1, '', list}
