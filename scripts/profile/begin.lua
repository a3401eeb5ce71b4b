-- Begins an update. Until it ends, nobody loads; what is cached is served no longer than that.
--
-- KEYS[1]  the hash of one ID, see get.lua
-- KEYS[2]  the hash of its partition
-- ARGV[1]  token of the update, 16 bytes
-- ARGV[2]  version to begin with where there is none
-- ARGV[3]  when the update is over at the latest, µs from now
-- ARGV[4]  how long the version is kept, ms
--
-- Of updates at the same time nobody knows in which order the database sees them: their versions
-- are struck out, so that none of them stores, and what is cached goes, as one may be done.
--
-- Reply: 1; or 0, and nothing was done: there are 256 of them.
local call, key = redis.call, KEYS[1]
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local updates = redis.pcall('HGET', key, 'u')
if type(updates) == 'table' then -- something else's key
  call('UNLINK', key)
  updates = false
end
local others, longest = {}, ARGV[3] + 0
if updates then
  for at = 1, #updates, 64 do
    local from, till = updates:sub(at + 16, at + 31) + 0, updates:sub(at + 32, at + 47) + 0
    if from <= now and till > now then
      others[#others + 1], longest = string.rep('-', 16) .. updates:sub(at + 16, at + 63), math.max(longest, till - now)
    end
  end
  if #others >= 256 then
    return 0
  end
end
call('HDEL', key, 'l') -- first, as a full Redis permits it: it then lets the script write

local version = call('HGET', KEYS[2], 'v')
if not version then
  version = ARGV[2]
  call('HSET', KEYS[2], 'v', version)
end
if call('PTTL', KEYS[2]) < ARGV[4] / 2 then
  call('PEXPIRE', KEYS[2], ARGV[4])
end

if updates then
  call('UNLINK', key)
  version = string.rep('-', 16)
end
call('HSET', key, 'u', table.concat(others) .. version .. string.format('%.0f%.0f', now, now + ARGV[3]) .. ARGV[1])
call('PEXPIRE', key, math.ceil(longest / 1000))
return 1
