-- Changes what a Take of a sliding window has spent.
--
-- KEYS[1]  the key
-- ARGV[1]  limit   permits per window
-- ARGV[2]  ttl     in milliseconds, at least two windows
-- ARGV[3]  delta   permits to spend besides (> 0) or to give back (< 0)
-- ARGV[4]  mark    of the Take: the base of its claim
-- ARGV[5]  total   entries of that claim, which may be that of several Takes
-- ARGV[6]  window  not used
-- ARGV[7]  now     in microseconds; tests only, default TIME
--
-- Reply: {permits given back or spent}. Spending is not denied, but beyond the
-- limit one entry more would change nothing. Giving back removes entries of the
-- claim, if they still count: the last ones that are left, the base at the very end.
local call, key, delta = redis.call, KEYS[1], tonumber(ARGV[3])
if delta > 0 then
  local total, now = math.min(delta, tonumber(ARGV[1])), tonumber(ARGV[7])
  -- include limit_now.lua
  -- include limit_claim.lua
  call('PEXPIRE', key, ARGV[2])
  return {total}
end
if not call('ZSCORE', key, ARGV[4]) then return {0} end
local removed, i = 0, tonumber(ARGV[5])
while removed < -delta and i > 1 do
  local members = {}
  for j = i, math.max(2, i - math.min(999, -delta - removed - 1)), -1 do
    members[#members + 1] = ARGV[4] .. ':' .. j
  end
  removed = removed + call('ZREM', key, unpack(members))
  i = i - #members
end
if removed < -delta then removed = removed + call('ZREM', key, ARGV[4]) end
return {removed}
