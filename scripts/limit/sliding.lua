-- Made of parts/sliding.lua. Change it there, then: go test ./scripts -update
--
-- Decides by the sliding window: a sorted set with one entry per permit, scored by the
-- microsecond of its Take. Entries at or before now-window no longer count.
--
-- An admission calls TIME, ZCARD, ZREMRANGEBYSCORE and ZADD. A denial writes nothing,
-- except that entries of the future, left by a clock that stepped back, become entries of
-- now, up to 10,000 in one call: nobody is locked out for longer than one window. Of more than
-- 100,000 entries, as many that do not count any more go in one call.
--
-- PEXPIRE runs when the set was empty or loses an entry, here or in sliding_settle.lua,
-- and no entry outlives its key. Let it have run last at time p. What was in the set then
-- is there still, so its newest entry e <= p counts, and e > now-window. So now is before
-- p+window, and an entry of now counts until p+2*window at most, which is ttl.
--
-- The mark is the base of the claim, see the comment at ZADD.
--
-- KEYS[1]  the key
-- ARGV[1]  limit   permits per window
-- ARGV[2]  ttl     of what is written, in milliseconds
-- ARGV[3]  window  in microseconds
-- ARGV[4]  cost    permits per request, default 1; 0: decide as for 1, spend nothing
-- ARGV[5]  now     in microseconds; tests only, otherwise absent or empty: TIME
-- ARGV[6]  n       requests, decided in their order, default 1
--
-- Reply: seven whole numbers, times in microseconds: granted of n, permits remaining,
-- retry after (0: all were granted, -1: never), reset after, now, mark, second mark. The
-- marks identify what was granted. They come as doubles, big-endian, in a string of 56
-- bytes: an array costs twice as much. Without the library struct, which Redis has had
-- since 2.6, they come as an array.
local call, ARGV, struct, brief = redis.call, ARGV, rawget(_G, 'struct'), false
local pack = struct and struct.pack or function(_, ...) return {...} end
local key, limit, ttl, window = KEYS[1], ARGV[1] + 0, ARGV[2], ARGV[3]
local cost, now, n, dry, clock = (ARGV[4] or 1) + 0, tonumber(ARGV[5]), (ARGV[6] or 1) + 0, false, nil
local time = not now and call('TIME')
if time then now = time[1] * 1000000 + time[2] end
local edge, score
window = window + 0
local old, unit, card = now - window, cost, call('ZCARD', key)
if cost == 0 then unit, dry = 1, true end
local granted, stale, mark = n, 0, 0
if dry or card + unit * n > limit then
  if card > 0 then stale = call('ZCOUNT', key, '-inf', old) end
  granted = math.max(0, math.min(n, math.floor((limit - card + stale) / unit)))
  if cost == 0 and granted > 0 then granted = n end
end
if granted > 0 and not dry then
  local total, trimmed = granted * cost, 0
  if card > 100000 then -- in steps, as Redis serves nobody else meanwhile
    stale = call('ZCOUNT', key, '-inf', old)
    trimmed = stale > 0 and call('ZREMRANGEBYRANK', key, 0, math.min(stale, 100000) - 1) or 0
  elseif card > 0 then
    edge = edge or string.format('%d%06d', (old - old % 1000000) / 1000000, old % 1000000)
    trimmed = call('ZREMRANGEBYSCORE', key, '-inf', edge)
    stale = trimmed
  end
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
  if trimmed > 0 or card == 0 then call('PEXPIRE', key, ttl) end
  card, stale, mark = card - trimmed + total, stale - trimmed, base
  if granted == n and brief then return n, now, card - stale - total, mark, 0 end
  if granted == n then return pack('>ddddddd', n, limit - card + stale, 0, window, now, mark, 0) end
end
local retry, last = 0, tonumber(call('ZRANGE', key, -1, -1, 'WITHSCORES')[2] or old)
if last > now then
  for _, member in ipairs(call('ZRANGEBYSCORE', key, now + 1, '+inf', 'LIMIT', 0, 10000)) do
    call('ZADD', key, 'XX', now, member)
  end
end
if granted < n and unit > limit then
  retry = -1
elseif granted < n then
  local rank = card + unit - limit - 1
  retry = math.min(call('ZRANGE', key, rank, rank, 'WITHSCORES')[2], now) - old
end
local reset = math.max(0, math.min(last, now) - old)
if brief then return granted, now, card - stale - granted * cost, granted > 0 and mark or reset, retry end
return pack('>ddddddd', granted, math.max(0, limit - card + stale), retry, reset, now, mark, 0)
