-- Made of parts/sweep.lua. Change it there, then: go test ./scripts -update
--
-- Removes what is past from an owner's hash, bounds its tombstones, and sets the key's
-- expiry exactly.
--
-- KEYS[1]  the owner's hash
-- ARGV[1]  how many tombstones in their Grace stay; those where nothing had lived go first
-- ARGV[2]  how many others stay; those that end first go first
--
-- Reply: now
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

local last, fresh, others, apart, records, unknown = 0, {}, {}, {}, {}, false
for f, r in each(apart) do
  local format = r:byte(1)
  local ends = format == 1 and #r >= 53 and times('>I7', r, 45) or (format == 2 or format == 3) and #r >= 41 and times('>I7', r, 10)
  if format == 1 and ends and r:byte(2) % 16 >= 8 and r:byte(53) == 0 then -- a copy keeps its place
    ends = times('>I7', r, 31)
  end
  if ends and ends <= now then
    call('HDEL', key, f)
  elseif format ~= 1 and ends and r:byte(2) == 3 then -- the place of a copy
    last = math.max(last, ends)
  elseif format ~= 1 and ends then
    local list = times('>I7', r, 3) > now and fresh or others
    list[#list + 1] = {field = f, lived = r:byte(2), ends = ends}
  else
    records['v' .. f] = true
    last, unknown = math.max(last, ends or 0), unknown or not ends
  end
end
for _, f in ipairs(apart) do
  if #f == 17 and f:byte(1) == 118 and not records[f] then
    call('HDEL', key, f)
  end
end
local function bound(list, most, before)
  if #list > most then
    table.sort(list, before)
  end
  for i, tombstone in ipairs(list) do
    if #list - i >= most then
      call('HDEL', key, tombstone.field)
    else
      last = math.max(last, tombstone.ends)
    end
  end
end
bound(fresh, tonumber(ARGV[1]), function(a, b)
  if a.lived ~= b.lived then
    return a.lived < b.lived
  end
  return a.ends < b.ends
end)
bound(others, tonumber(ARGV[2]), function(a, b) return a.ends < b.ends end)
local fence = call('HGET', key, 'f')
if fence then
  local ends = #fence == 37 and times('>I7', fence, 8) or 0
  if ends > now then
    last = math.max(last, ends)
  else
    call('HDEL', key, 'f')
  end
end
if last > 0 then
  call('HSET', key, 's', call('HLEN', key))
  local ms = (last - last % 1000) / 1000 + 1
  if not unknown or call('PTTL', key) < ms - now / 1000 then -- what a newer release has written is not cut short
    call('PEXPIREAT', key, ms)
  end
else
  call('HDEL', key, 's')
end
return now
