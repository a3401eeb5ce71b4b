-- Made of parts/sliding_settle.lua. Change it there, then: go test ./scripts -update
--
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
  local time = not now and call('TIME')
  if time then now = time[1] * 1000000 + time[2] end
  local card = call('ZCARD', key)
  local score
  -- A claim adds total entries of time now. base is the number on which their members are
  -- built: base, base:2, base:3 and so on. It is a number from now on that is no member; one
  -- that is belongs to a claim of the same microsecond. A plain number takes 20 bytes of a
  -- listpack, half of what a random member would. Where base is no member, base:2 is none:
  -- the entries of one claim have one time, so they are trimmed together, and those given
  -- back are taken from the end.
  local base = now
  if score then -- of a key before
  elseif time and #time[2] == 6 then
    score = time[1] .. time[2] -- there as it is
  else
    score = string.format('%d%06d', (now - now % 1000000) / 1000000, now % 1000000)
  end
  local first = score
  while call('ZADD', key, 'NX', score, first) == 0 do
    -- As many steps as there are entries of this time pass most of them at once.
    base = base + (base == now and math.max(1, call('ZCOUNT', key, score, score)) or 1)
    first = string.format('%.0f', base)
  end
  for i = 2, total, 1000 do -- unpack takes less than 8,000
    local args = {}
    for j = i, math.min(i + 999, total) do
      args[#args + 1] = score
      args[#args + 1] = first .. ':' .. j
    end
    call('ZADD', key, unpack(args))
  end
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
