-- Keeps what was loaded under a lease, or gives the lease back.
--
-- KEYS[1]  the hash of one ID, see get.lua
-- KEYS[2]  the hash of its partition
-- ARGV[1]  form: the field of the value
-- ARGV[2]  token of the lease
-- ARGV[3]  the value after its head; '' gives the lease back
-- ARGV[4]  how long it is kept, µs; 0 without a value: what is cached goes
-- ARGV[5]  when it is due for a refresh, µs from now
--
-- Reply: 1, or 0 if the lease was taken away or is over: then nothing was changed.
local call, key, form = redis.call, KEYS[1], ARGV[1]
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local lease, version = call('HGET', key, 'l'), call('HGET', KEYS[2], 'v')
if not lease or lease:sub(49) ~= ARGV[2] or lease:sub(1, 16) ~= version or lease:sub(33, 48) + 0 <= now then
  return 0
end
call('HDEL', key, 'l')
if ARGV[3] == '' then
  if ARGV[4] == '0' then
    call('HDEL', key, form)
  end
  return 1
end
for _, other in ipairs(call('HKEYS', key)) do -- of servers of another release; they are read by those
  if other ~= form then
    local value = call('HGET', key, other)
    if value:sub(1, 16) ~= version or value:sub(17, 32) + 0 <= now then
      call('HDEL', key, other)
    end
  end
end
call('HSET', key, form, version .. string.format('%.0f%.0f', now + ARGV[4], now + ARGV[5]) .. ARGV[3])
local ms = math.ceil(ARGV[4] / 1000)
if call('PTTL', key) < ms then
  call('PEXPIRE', key, ms)
end
return 1
