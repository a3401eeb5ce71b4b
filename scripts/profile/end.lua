-- Ends an update, or forgets a value: what is cached goes, with the lease of who loads it. Other
-- updates go on, and none of them stores.
--
-- KEYS[1]  the hash of one ID, see get.lua; or that of a partition, to forget all of it
-- KEYS[2]  the hash of its partition, if there is a value to be stored. While a slot moves, Redis
--          refuses scripts of two keys
-- ARGV[1]  token of the update, or ''
-- ARGV[2]  form: the field of the value
-- ARGV[3]  the value after its head, which is stored if no other update came near; or ''
-- ARGV[4]  how long it is kept, µs
-- ARGV[5]  when it is due for a refresh, µs from now
--
-- Reply: 1 if the value was stored, or 0
local call, key = redis.call, KEYS[1]
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local updates, version = redis.pcall('HGET', key, 'u'), KEYS[2] and call('HGET', KEYS[2], 'v')
call('UNLINK', key)

local mine, others, longest = false, {}, 0
if type(updates) == 'string' then -- else there are none, or it was something else's key
  for at = 1, #updates, 64 do
    local from, till = updates:sub(at + 16, at + 31) + 0, updates:sub(at + 32, at + 47) + 0
    if updates:sub(at + 48, at + 63) == ARGV[1] then
      mine = updates:sub(at, at + 15)
    elseif from <= now and till > now then
      others[#others + 1], longest = string.rep('-', 16) .. updates:sub(at + 16, at + 63), math.max(longest, till - now)
    end
  end
end
if #others > 0 then
  call('HSET', key, 'u', table.concat(others))
  call('PEXPIRE', key, math.ceil(longest / 1000))
elseif ARGV[3] ~= '' and mine and mine == version then
  call('HSET', key, ARGV[2], version .. string.format('%.0f%.0f', now + ARGV[4], now + ARGV[5]) .. ARGV[3])
  call('PEXPIRE', key, math.ceil(ARGV[4] / 1000))
  return 1
end
return 0
