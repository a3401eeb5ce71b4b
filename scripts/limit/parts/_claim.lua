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
