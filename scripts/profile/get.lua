-- Reads a cached value, or gives out the lease under which it is loaded.
--
-- KEYS[1]  the hash of one ID: a value in each form, l the lease of a load, u the updates under way
-- KEYS[2]  the hash of its partition: v, the version; values and leases of another one are void
-- ARGV[1]  form: the field of the value
-- ARGV[2]  token of the lease, 16 bytes
-- ARGV[3]  version to begin with where there is none, 16 bytes, never used before
-- ARGV[4]  length of the lease, µs
-- ARGV[5]  head of a value that the caller cannot read, or ''
-- ARGV[6]  how long the version is kept, ms
--
-- A value is version, end and time of its refresh (16 bytes each), and what is not read here. A
-- lease, and each of the updates, is version, begin, end and token (16 bytes each). Times are µs.
--
-- Reply: {now, what, value, left}. what is 'hit'; 'refresh', a hit whose lease the caller now has;
-- 'load', the caller has the lease; or 'held' by somebody else for so many more µs.
local call, key, form = redis.call, KEYS[1], ARGV[1]
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]

local function left(s, at) -- what begins later is from before the clock was set back
  local from, till = s:sub(at + 16, at + 31) + 0, s:sub(at + 32, at + 47) + 0
  return from <= now and till > now and till - now or 0
end

local version = call('HGET', KEYS[2], 'v')
local there = call('HMGET', key, form, 'l', 'u')
local value, lease, updates, held = there[1], there[2], there[3], 0
if updates then
  for at = 1, #updates, 64 do
    held = math.max(held, left(updates, at))
  end
  if held == 0 then -- an update died: no value may outlive it
    call('UNLINK', key)
    value, lease = false, false
  end
end
if lease and lease:sub(1, 16) == version then
  held = math.max(held, left(lease, 1))
end
local ends = value and value:sub(1, 16) == version and value:sub(17, 32) - now or 0
local good = ends > 0 and ends < ARGV[6] * 1000 and value:sub(1, 48) ~= ARGV[5] -- longer if the clock was set back
if good and (held > 0 or value:sub(33, 48) + 0 > now) then
  return {now, 'hit', value, 0}
elseif held > 0 then
  return {now, 'held', '', held}
end
if not version then
  version = ARGV[3]
  call('HSET', KEYS[2], 'v', version)
end
local leased = redis.pcall('HSET', key, 'l', version .. string.format('%.0f%.0f', now, now + ARGV[4]) .. ARGV[2])
if type(leased) == 'table' then -- a Redis that is full, or read-only
  return good and {now, 'hit', value, 0} or leased
end
if value and not good then
  call('HDEL', key, form)
end
local ms = math.ceil(ARGV[4] / 1000)
if call('PTTL', key) < ms then
  call('PEXPIRE', key, ms)
end
if call('PTTL', KEYS[2]) < ARGV[6] / 2 then
  call('PEXPIRE', KEYS[2], ARGV[6])
end
return {now, good and 'refresh' or 'load', good and value or '', 0}
