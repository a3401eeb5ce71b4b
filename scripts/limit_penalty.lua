-- limit_take.lua, with bans for keys that are denied again and again.
--
-- KEYS[1]   the key
-- KEYS[2]   its record, in the same slot: "banned until:bans:strikes"
-- ARGV[1-5] as in limit_take.lua
-- ARGV[6]   strikes  denials that lead to a ban
-- ARGV[7]   first    length of the first ban in microseconds, each is twice the last
-- ARGV[8]   longest  of a ban
-- ARGV[9]   memory   until a record without a new strike is forgotten
-- ARGV[10]  now      in microseconds; tests only, default TIME
--
-- Reply: the numbers of limit_take.lua, as an array. During a ban nothing is granted or counted, so that
-- its end stays where a client was told it is.
--
-- decide comes before it: a function of limit_sliding.lua, limit_fixed.lua or limit_bucket.lua.
local cost, n, explicit = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[10])
local now, limit, longest = explicit, tonumber(ARGV[1]), tonumber(ARGV[8])
-- include limit_now.lua
local untilTime, bans, strikes = string.match(call('GET', KEYS[2]) or '', '^(%d+):(%d+):(%d+)$')
untilTime, bans, strikes = tonumber(untilTime) or 0, tonumber(bans) or 0, tonumber(strikes) or 0
local left = math.min(untilTime - now, longest) -- the clock may have stepped back
if left > 0 then
  return {0, 0, cost > limit and -1 or left, left, now, 0, 0}
end
local verdict = decide(KEYS[1], limit, ARGV[2], ARGV[3], cost, n, explicit, false)
if verdict[1] < n and cost > 0 and cost <= limit then
  strikes = strikes + 1
  left = 0
  if strikes >= tonumber(ARGV[6]) then
    left = math.min(ARGV[7] * 2 ^ bans, longest)
    bans, strikes = bans + 1, 0
    verdict[3], verdict[4] = math.max(verdict[3], left), math.max(verdict[4], left)
  end
  call('SET', KEYS[2], string.format('%.0f:%d:%d', now + left, math.min(bans, 60), strikes),
    'PX', math.ceil((left + ARGV[9]) / 1000))
end
return verdict
