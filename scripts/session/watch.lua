-- Made of parts/watch.lua. Change it there, then: go test ./scripts -update
--
-- Tells whether sessions still stand, for those who watch them.
--
-- KEYS[1]  the owner's hash
-- ARGV     of each: the field where it was, its handle
--
-- Reply: {now, 1, "", {field, record, …}}, of each: where it stands, and the first 52 bytes
-- of its record; or "", and the tombstone that says why not, or "". now is Redis's time in µs.
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

local function live(r, handle)
  return r and r:byte(1) == 1 and #r >= 53 and times('>I7', r, 45) > now and r:sub(15, 23) == handle
end
local stand, why
local function look()
  stand, why = {}, {}
  for f, r in each() do
    if live(r, r:sub(15, 23)) then -- of two the one that stays longer
      local handle, till = r:sub(15, 23), times('>I7', r, 45)
      if not stand[handle] or till > stand[handle].till then
        stand[handle] = {field = f, till = till}
      end
    elseif r:byte(1) == 3 and #r > 41 then -- it gives a reason
      why[r:sub(17, 25)] = r
    end
  end
end
local out = {}
for i = 1, #ARGV, 2 do
  local field, handle = ARGV[i], ARGV[i + 1]
  local r = call('HGET', key, field)
  if not live(r, handle) then
    if not stand then
      look()
    end
    field = stand[handle] and stand[handle].field or ''
    r = field ~= '' and call('HGET', key, field) or why[handle] or ''
  end
  out[#out + 1] = field
  out[#out + 1] = r:byte(1) == 1 and r:sub(1, 52) or r
end
return {now, 1, '', out}
