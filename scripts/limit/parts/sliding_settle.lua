-- Changes what a Take of a sliding window has spent.
--
-- KEYS[1]  the key
-- ARGV[1]  limit   permits per window
-- ARGV[2]  ttl     in milliseconds, two windows
-- ARGV[3]  delta   permits to spend besides (> 0) or to give back (< 0), at most 10,000
-- ARGV[4]  mark    of the Take: the base of its claim
-- ARGV[5]  total   entries of that claim, which may be that of several Takes
-- ARGV[6]  window  not used
-- ARGV[7]  now     in microseconds; tests only, otherwise absent: TIME
--
-- Reply: {permits given back or spent}. Spending is not denied: where the set is at its
-- limit, entries of now take the place of the oldest. Giving back removes entries of the
-- claim, if they still count: the last ones that are left, the base at the very end. Either
-- way the key gets its whole life again, as sliding.lua relies on.
local call, key, limit, delta = redis.call, KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[3])
if delta > 0 then
  local total, now = math.min(delta, limit), tonumber(ARGV[7])
  -- include _now.lua
  local card = call('ZCARD', key)
  local score
  -- include _claim.lua
  local over = card + total - math.max(limit, card)
  if over > 0 then
    local edge = call('ZRANGE', key, over - 1, over - 1, 'WITHSCORES')[2]
    over = over - call('ZREMRANGEBYSCORE', key, '-inf', '(' .. edge)
    local members = call('ZRANGEBYSCORE', key, edge, edge)
    for _, bases in ipairs({false, true}) do -- last, as an entry of a claim is known by its base
      for _, member in ipairs(members) do
        if over > 0 and (string.find(member, ':', 1, true) == nil) == bases then
          over = over - call('ZREM', key, member)
        end
      end
    end
  end
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
call('PEXPIRE', key, ARGV[2])
return {removed}
