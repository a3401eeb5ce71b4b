-- Made of parts/beside.lua. Change it there, then: go test ./scripts -update
--
-- Gives a session a second ID, which takes the place of the first when the response is
-- sent: see retire.lua. Its times are those of the session.
--
-- KEYS[1]  the owner's hash
-- ARGV[1]  field of the second ID
-- ARGV[2]  head, 23 bytes
-- ARGV[3]  boxes
-- ARGV[4]  how long it stands if it does not take the place, µs
-- ARGV[5]  values in a field of their own, or ""
-- ARGV[6]  field of the first ID
-- ARGV[7]  revision that the caller knows, 8 bytes
-- ARGV[8]  how long what stands at the first ID may be unused, µs; 0: its lifetime decides
--
-- Reply: now, done; -now, done, and a sweep is due; {now, 0, there}, not done: there stands
-- at the first ID, "" for nothing. now is Redis's time in µs.
local call, key = redis.call, KEYS[1]
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

local there = call('HGET', key, ARGV[6])
if not there then
  return {now, 0, ''}
end
if there:byte(1) ~= 1 or #there < 53 or there:sub(7, 14) ~= ARGV[7] then
  return {now, 0, there}
end
local born, deadline, touched, ends = times('>I7I7I7I7', there, 24)
local noted, limit = there:byte(52), tonumber(ARGV[8])
-- Whether what stands is over, by its own time or the idle timeout that is configured now. Who
-- held it while it did not answer does not bring it back. limit is that idle timeout, µs; 0: none.
-- noted is the power of two below which uses were noted.
local over = ends <= now or limit > 0 and touched + limit + 2 ^ noted <= now
if over then
  return {now, 0, ''}
end
ends = math.min(deadline, now + ARGV[4])
call('HSET', key, ARGV[1], ARGV[2] .. pack('>I7I7I7I7', born, deadline, touched, ends) .. string.char(noted) .. '\0' .. ARGV[3])
if ARGV[5] ~= '' then
  call('HSET', key, 'v' .. ARGV[1], ARGV[5])
end
local ms = (ends - ends % 1000) / 1000 + 1
call('PEXPIREAT', key, ms, 'GT')
-- A sweep is due when there are 16 fields, and twice as many as the last one left.
local n = call('HLEN', key)
local due = n >= 16 and n >= 2 * (tonumber(call('HGET', key, 's')) or 8)
return due and -now or now
