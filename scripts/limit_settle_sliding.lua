-- Changes what a Take of a sliding window has spent. Runs after limit_claim.lua.
--
-- KEYS[1]  the key
-- ARGV[1]  limit   permits per window
-- ARGV[2]  ttl     in milliseconds, at least two windows
-- ARGV[3]  delta   permits to spend besides (> 0) or to give back (< 0)
-- ARGV[4]  mark    of the Take: the number on which its members are built
-- ARGV[5]  first   of the members that are given back, counted from 1
-- ARGV[6]  window  not used
-- ARGV[7]  now     in microseconds; tests only, default TIME
--
-- Reply: {permits given back or spent}. Spending is not denied, but beyond the
-- limit one entry more would change nothing. Giving back removes the very entries
-- of the Take, if they still count, and so does so once.
local key, delta = KEYS[1], tonumber(ARGV[3])
if delta > 0 then
  delta = math.min(delta, tonumber(ARGV[1]))
  claim(key, tonumber(ARGV[7]) or clock(), delta)
  call('PEXPIRE', key, ARGV[2])
  return {delta}
end
local removed, first = 0, tonumber(ARGV[5])
for i = first, first - delta - 1, 1000 do
  local members = {}
  for j = i, math.min(i + 999, first - delta - 1) do
    members[#members + 1] = j == 1 and ARGV[4] or ARGV[4] .. ':' .. j
  end
  removed = removed + call('ZREM', key, unpack(members))
end
return {removed}
