-- Decides by one policy, and bans keys that do not wait for as long as they are told to.
--
-- KEYS[1]   the key
-- KEYS[2]   its record, in the same slot: "banned until:bans:strikes:denied at:wait until:limit"
-- ARGV[1-5] limit, ttl, window, cost and n, as in the script of the algorithm
-- ARGV[6]   algorithm: its word in keys
-- ARGV[7]   strikes    that lead to a ban
-- ARGV[8]   first      length of the first ban in microseconds, each is twice the last
-- ARGV[9]   longest    of a ban
-- ARGV[10]  memory     until a record without a new strike is forgotten
-- ARGV[11]  how        "impatient": since it was denied the key has come early to the server that
--           asks, which has denied it by itself; "untold": the client does not learn of a denial,
--           which is not noted; "": neither
-- ARGV[12]  now        in microseconds; tests only, otherwise absent: TIME
--
-- Reply: the seven numbers of that script, as an array; the last is -1 in a ban. During a ban nothing is granted or
-- counted, so that its end stays where a client was told it is. The record holds for one
-- limit only: another limit begins anew, with a record once a ban under the first is over.
--
-- A denial is a strike if the key was denied before and came back before the time that it
-- was told to wait for. What follows a denial within half a second, or half of that time,
-- was under way already and is no strike, also if another server has seen it come early.
-- include _algorithms.lua
local cost, n, explicit = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[12])
local now, limit, longest = explicit, tonumber(ARGV[1]), tonumber(ARGV[9])
-- include _now.lua
local record = call('GET', KEYS[2]) or ''
local untilTime, bans, strikes, denied, wait, of = string.match(record, '^(%d+):(%d+):(%d+):(%d+):(%d+):(%d+)$')
local kept = of and tonumber(of) ~= limit and untilTime + 0 > now
if tonumber(of) ~= limit then untilTime, bans, strikes, denied, wait = 0, 0, 0, 0, 0 end
untilTime, bans, strikes, denied, wait = untilTime + 0, bans + 0, strikes + 0, denied + 0, wait + 0
local left = math.min(untilTime - now, longest, ARGV[8] * 2 ^ (bans - 1)) -- the clock may have stepped back
if left > 0 then
  return {0, 0, cost > limit and -1 or left, left, now, 0, -1}
end
local function save()
  if kept then return end
  call('SET', KEYS[2], string.format('%.0f:%d:%d:%.0f:%.0f:%.0f', left > 0 and now + left or 0, bans, strikes, denied, wait, limit),
    'PX', math.ceil((math.max(left, wait - now) + ARGV[10]) / 1000))
end
local function apart() return denied > 0 and now - denied > math.min(500000, (wait - denied) / 2) end
local function strike()
  strikes, denied, wait = strikes + 1, 0, 0
  if strikes >= tonumber(ARGV[7]) then
    left = math.min(ARGV[8] * 2 ^ bans, longest)
    bans, strikes = math.min(bans + 1, 60), 0
  end
  return left > 0
end
left = 0
if cost > 0 and ARGV[11] == 'impatient' and apart() then
  local banned = strike()
  save()
  if banned then return {0, 0, cost > limit and -1 or left, left, now, 0, -1} end
end
local verdict = algorithms[ARGV[6]](KEYS[1], limit, ARGV[2], ARGV[3], cost, n, explicit, false)
if not verdict.err and verdict[1] < n and cost > 0 and cost <= limit and ARGV[11] ~= 'untold' then
  if now < wait and apart() and strike() then
    verdict[3], verdict[4], verdict[7] = math.max(verdict[3], left), math.max(verdict[4], left), -1
  elseif now >= wait then
    denied, wait = now, now + verdict[3]
  end
  save()
end
return verdict
