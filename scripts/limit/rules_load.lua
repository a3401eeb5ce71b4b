-- Returns the rules of limits, page by page, unless they are those that the caller has. A rule that
-- is changed meanwhile is there as it was or as it is; then the version is another one.
--
-- KEYS[1]  the hash of rules: "" is their version, any other field a rule
-- ARGV[1]  the version that the caller has; "": none
-- ARGV[2]  for how long rules are kept that nobody asks for, ms
-- ARGV[3]  where the page begins; "0": the first one
-- ARGV[4]  about how many rules a page has
--
-- Reply: {now, version, where the next page begins, {fields and values...}, number of fields}, without
-- the last three if the version is the caller's. now is Redis's time in µs. Where there are no rules
-- there is no hash, and the version is "". After the last page "0" comes next.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local version = redis.call('HGET', KEYS[1], '') or ''
if ARGV[3] == '0' then
  if version ~= '' and redis.call('PTTL', KEYS[1]) < ARGV[2] / 2 then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
  end
  if version == ARGV[1] or version == '' then
    return {now, version}
  end
end
local page = redis.call('HSCAN', KEYS[1], ARGV[3], 'COUNT', ARGV[4])
return {now, version, page[1], page[2], redis.call('HLEN', KEYS[1])}
