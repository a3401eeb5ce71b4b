-- Made of parts/penalty.lua. Change it there, then: go test ./scripts -update
--
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
local call, clock, brief = redis.call, nil, false
local function pack(_, ...) return {...} end
local algorithms = {
  sliding = function(key, limit, ttl, window, cost, n, now, dry)
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
  end,
  fixed = function(key, limit, ttl, window, cost, n, now, dry)
    local spend, total, unit, granted, retry = not dry and cost > 0 and cost <= limit, cost * n, cost, n, 0
    local used, ends, at, over
    if now then -- a test's clock may have passed an expiry that Redis's has not
      ends = call('PEXPIRETIME', key)
      over = ends >= 0 and (ends + 1) * 1000 <= now
      if over and spend then call('DEL', key) end
    end
    if not spend then
      if cost == 0 then unit = 1 end
      used = not over and call('GET', key)
      if used then -- what is no counter fails, as a hit would
        used = string.find(used, '^-?%d+$') and used + 0 or call('INCRBY', key, 0)
      end
    elseif total == 1 then
      used = call('INCR', key) -- a number for INCRBY would first become a string
    else
      used = call('INCRBY', key, total)
    end
    if used then
      ends = call('PEXPIRETIME', key)
      at = now or clock or ends < 0 and 0 or (ends - call('PTTL', key)) * 1000
      if ends < 0 or ends > at / 1000 + ttl then
        if now then
          call('PEXPIREAT', key, string.format('%.0f', math.floor(now / 1000) + ttl))
        else
          call('PEXPIRE', key, ttl)
        end
        ends = call('PEXPIRETIME', key)
        at = now or clock or (ends - ttl) * 1000
      end
    else
      local time = not now and call('TIME')
      if time then now = time[1] * 1000000 + time[2] end
      used, at, ends = 0, now, 0
    end
    if not spend or used > limit then
      if spend then used = used - total end
      granted = math.max(0, math.min(n, math.floor((limit - used) / unit)))
      if spend then
        call('INCRBY', key, granted * cost - total)
        used = used + granted * cost
      elseif cost == 0 and granted > 0 then
        granted = n
      end
    end
    if brief then return granted, at, used - granted * cost, ends, 0 end
    local reset = ends > 0 and (ends + 1) * 1000 - at or 0
    if granted < n then retry = unit > limit and -1 or reset end
    return pack('>ddddddd', granted, used < limit and limit - used or 0, retry, reset, at, ends, 0)
  end,
  bucket = function(key, limit, ttl, window, cost, n, now, dry)
    local patience = 0
    local time = not now and call('TIME')
    if time then now = time[1] * 1000000 + time[2] end
    window = window + 0
    -- The level is read into raw (false if there is none), whole and part: now if that is
    -- later. stored is what stands there if that is a plain number, and kept the end of the ten
    -- seconds of the clock that it lies in: before that the key does not expire. lent says that
    -- permits have been promised that are not there yet.
    local raw, whole, part, lent, stored, kept = call('GET', key), now, 0, nil, nil, 0
    if raw then
      stored = tonumber(raw)
      whole = stored
      if not stored then
        whole, part, lent = string.match(raw, '^(%d+):(%d+)(:?l?)$')
        whole, part = tonumber(whole) or call('INCRBY', key, 0), tonumber(part) -- INCRBY fails
      end
      kept = whole - whole % 10000000 + 10000000
      if part >= limit then whole, part = whole + 1, 0 end -- left by another limit
      if not (whole >= now) then whole, part = now, 0 end
    end
    local full, ahead = now + window, false
    if (whole > full or whole == full and part > 0) and (lent ~= ':l' or whole - full > window) then
      if string.find(raw, '[^%d:l]') then call('INCRBY', key, 0) end -- fails: this is no level
      whole, part, ahead = full, 0, true
    end
    local rest, room = window % limit, full + patience - whole -- a permit is step + rest/limit
    local step, left = (window - rest) / limit, nil
    if rest == 0 and part == 0 then
      left = (room - room % step) / step
    else
      left = math.floor(room * limit / window) + 1
      while left > 0 and left * step + math.ceil((part + left * rest) / limit) > room do
        left = left - 1
      end
    end
    if left < 0 then left = 0 end
    local unit, granted, retry = cost > 0 and cost or 1, n, 0
    if unit * n > left then
      granted = math.floor(left / unit)
      if cost == 0 and granted > 0 then granted = n end
    end
    local spent, before, beforePart = dry and 0 or granted * cost, whole, part
    if spent > 0 or ahead then
      part = part + spent * rest
      whole = whole + spent * step + (part - part % limit) / limit
      part = part % limit
      -- The level is written. PX gives it an expiry ttl milliseconds from now: as far as a level
      -- can be ahead and ten seconds, and so no earlier than the end of the ten seconds of the
      -- clock in which the level lies. Until it gets beyond them it needs no other, and mostly
      -- INCRBY is enough, at half the price. Ten are the same for all limits, since several may
      -- share a key.
      local near, loan = whole < kept, whole > full or whole == full and part > 0
      if near and stored and part == 0 and not loan then
        call('INCRBY', key, whole - stored)
      else
        local second, micros = (whole - whole % 1000000) / 1000000, whole % 1000000
        local level = string.format((loan and '%d%06d:%.0f:l') or part == 0 and '%d%06d' or '%d%06d:%.0f', second, micros, part)
        if near then call('SET', key, level, 'KEEPTTL') else call('SET', key, level, 'PX', ttl) end
      end
    end
    if brief then return granted, now, before, beforePart, 0 end
    if granted < n then
      retry = unit > limit and -1 or whole + unit * step + math.ceil((part + unit * rest) / limit) - full
    elseif patience > 0 then
      retry = math.max(0, whole + (part > 0 and 1 or 0) - full)
    end
    return pack('>ddddddd', granted, left - spent, retry, whole - now + (part > 0 and 1 or 0), now, whole, part)
  end,
  quota = function(key, limit, ttl, window, cost, n, now, dry)
    local time = not now and call('TIME')
    if time then now = time[1] * 1000000 + time[2] end
    local spend, total, unit, granted, retry = not dry and cost > 0 and cost <= limit, cost * n, cost, n, 0
    if cost == 0 then unit = 1 end
    local ends
    for boundary in string.gmatch(ttl, '%d+') do
      if not ends and boundary * 1000 > now then ends = tonumber(boundary) end
    end
    if not ends then return redis.error_reply('ERR the clocks of this server and of Redis are more than a period apart') end
    local expires, used = call('PEXPIRETIME', key), nil
    local over = expires >= 0 and (expires + 1) * 1000 <= now -- by a test's clock
    if spend then
      if over then call('DEL', key) end
      used = call('INCRBY', key, total)
      if expires ~= ends - 1 then -- Redis keeps a key through the millisecond of its expiry
        call('PEXPIREAT', key, string.format('%.0f', ends - 1))
      end
    else
      used = not over and call('GET', key) or '0'
      used = tonumber(used) or call('INCRBY', key, 0) -- which fails: this is no counter
    end
    if not spend or used > limit then
      if spend then used = used - total end
      granted = math.max(0, math.min(n, math.floor((limit - used) / unit)))
      if spend then
        call('INCRBY', key, granted * cost - total)
        used = used + granted * cost
      elseif cost == 0 and granted > 0 then
        granted = n
      end
    end
    if brief then return granted, now, used - granted * cost, ends, 0 end
    local reset = used > 0 and ends * 1000 - now or 0
    if granted < n then retry = unit > limit and -1 or ends * 1000 - now end
    return pack('>ddddddd', granted, used < limit and limit - used or 0, retry, reset, now, ends, 0)
  end,
}
local cost, n, explicit = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[12])
local now, limit, longest = explicit, tonumber(ARGV[1]), tonumber(ARGV[9])
local time = not now and call('TIME')
if time then now = time[1] * 1000000 + time[2] end
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
