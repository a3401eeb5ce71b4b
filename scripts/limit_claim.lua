-- claim adds total entries of time now to the sorted set at key and returns the
-- number on which their members are built: base, base:2, base:3 and so on. The
-- base is the first number from now on that leaves all of them unused; a used
-- one belongs to a Take of the same microsecond. A plain number takes 20 bytes
-- of a listpack, half of what any random member would.
--
-- ZADD NX tells for one entry whether it was new. For several it would not tell
-- which, and a refund may have freed base and not base:2: ask first.
local function claim(key, now, total)
  local time, base = string.format('%.0f', now), now
  if total == 1 then
    local member = time
    while call('ZADD', key, 'NX', time, member) == 0 do
      base = base + 1
      member = base
    end
    return base
  end
  local prefix, members, unused = time, {}, true
  repeat
    unused = true
    for i = 1, total, 1000 do -- unpack takes less than 8,000
      local to = math.min(i + 999, total)
      for j = i, to do members[j] = j == 1 and prefix or prefix .. ':' .. j end
      for _, score in ipairs(call('ZMSCORE', key, unpack(members, i, to))) do
        unused = unused and not score
      end
      if not unused then break end
    end
    if not unused then
      base = base + 1
      prefix = string.format('%.0f', base)
    end
  until unused
  for i = 1, total, 1000 do
    local args = {}
    for j = i, math.min(i + 999, total) do
      args[#args + 1] = time
      args[#args + 1] = members[j]
    end
    call('ZADD', key, unpack(args))
  end
  return base
end
