-- Returns the rules of limits, unless they are those that the caller has.
--
-- KEYS[1]  the hash of rules: "" is their version, any other field a rule
-- ARGV[1]  the version that the caller has; "": none
-- ARGV[2]  for how long rules are kept that nobody asks for, ms
--
-- Reply: {now, version, fields and values...}, the last only if the version is another one. now is
-- Redis's time in µs. Where there are no rules there is no hash, and the version is "".
local clock = redis.call('TIME')
local version = redis.call('HGET', KEYS[1], '') or ''
if version ~= '' and redis.call('PTTL', KEYS[1]) < ARGV[2] / 2 then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
local reply = {clock[1] * 1000000 + clock[2], version}
if version ~= ARGV[1] and version ~= '' then
  for i, v in ipairs(redis.call('HGETALL', KEYS[1])) do
    reply[i + 2] = v
  end
end
return reply
