-- Made of parts/create.lua. Change it there, then: go test ./scripts -update
--
-- Creates the record of a visitor's session, of the copy of a legacy one without a user, or of a Store.
--
-- KEYS[1]  the owner's hash
-- ARGV[1]  field
-- ARGV[2]  head, 23 bytes
-- ARGV[3]  boxes
-- ARGV[4]  life, 22 bytes: see README.md
-- ARGV[5]  deadline that the record keeps, µs since 1970; 0: its lifetime decides
-- ARGV[6]  values in a field of their own, or ""
-- ARGV[7]  "1": overwrite what is there
--
-- Reply: now, created; -now, created, and a sweep is due; {now, 0, there}, not created:
-- there stands at the field, or "" if the deadline has passed. now is Redis's time in µs.
local call, key, field, life, keeps = redis.call, KEYS[1], ARGV[1], ARGV[4], tonumber(ARGV[5])
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- Times are seven bytes, big-endian. miniredis has no struct.
local struct = rawget(_G, 'struct')
local pack = struct and struct.pack or function(_, ...)
  local s = ''
  for _, n in ipairs({...}) do
    local b = ''
    for _ = 1, 7 do
      b = string.char(n % 256) .. b
      n = (n - n % 256) / 256
    end
    s = s .. b
  end
  return s
end
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
-- Whether what stands at a field must stay. A copy keeps its place, and is not made again.
local function taken(there)
  local format, flags = there:byte(1, 2)
  if format == 1 then
    return #there >= 53 and times('>I7', there, flags % 16 >= 8 and 31 or 45) > now
  end
  return #there >= 41 and times('>I7', there, 10) > now
end

local lifetime, idle = times('>I7I7', life, 1)
local deadline = keeps > 0 and keeps or now + lifetime
if deadline <= now then
  return {now, 0, ''}
end
local ends = idle > 0 and math.min(deadline, now + idle) or deadline
local when = pack('>I7I7I7I7', now, deadline, now, ends) .. life:sub(22)
local record = ARGV[2] .. when .. '\0' .. ARGV[3]
if keeps > 0 and ARGV[7] ~= '1' then -- a copy, of which is to be known also in a full Redis what is in its way
  local there = call('HGET', key, field)
  if there and taken(there) then
    return {now, 0, there}
  end
end
local fresh = call('HSETNX', key, field, record) == 1
if not fresh then
  local there = call('HGET', key, field)
  if ARGV[7] ~= '1' and taken(there) then
    return {now, 0, there}
  end
  call('HSET', key, field, record)
end
-- A sweep is due when there are 16 fields, and twice as many as the last one left.
local n = call('HLEN', key)
local due = n >= 16 and n >= 2 * (tonumber(call('HGET', key, 's')) or 8)
if ARGV[6] ~= '' then
  call('HSET', key, 'v' .. field, ARGV[6])
elseif not fresh then
  call('HDEL', key, 'v' .. field)
end
local last, new = keeps > 0 and deadline or ends, n == 1
local ms = (last - last % 1000) / 1000 + 1
if new then -- GT does nothing to a key without a TTL
  call('PEXPIREAT', key, ms)
else
  call('PEXPIREAT', key, ms, 'GT')
end
return due and -now or now
