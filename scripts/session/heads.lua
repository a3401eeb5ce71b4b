-- Made of parts/heads.lua. Change it there, then: go test ./scripts -update
--
-- Lists what the records and rotated IDs of an owner are sealed under, without what is
-- sealed. What is over is left out: nobody will open it.
--
-- KEYS[1]  the owner's hash
--
-- Reply: the first 45 bytes of each
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

local heads = {}
if call('TYPE', key).ok ~= 'hash' then
  return heads
end
for _, r in each() do
  local format = r:byte(1)
  local ends = format == 1 and #r >= 53 and times('>I7', r, 45) or format == 2 and #r >= 41 and times('>I7', r, 3)
  if not ends or ends > now then
    heads[#heads + 1] = r:sub(1, 45)
  end
end
return heads
