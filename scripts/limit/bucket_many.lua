-- Made of parts/bucket_many.lua. Change it there, then: go test ./scripts -update
--
-- Decides about many keys, each by the token bucket as bucket.lua does for one.
--
-- KEYS     the keys, all different
-- ARGV[1]  limit   of each key: permits per window
-- ARGV[2]  ttl     of what is written, in milliseconds
-- ARGV[3]  window  in microseconds
-- ARGV[4]  cost    permits per request, 1 or more
-- ARGV[5]  now     in microseconds; tests only, otherwise absent or empty: TIME
-- ARGV[6]  and on: for each key, how many requests are decided in their order, default 1
--
-- Reply: for each key four numbers, which cost less than the verdict that the client makes of
-- them: now; permits used before this; end of the window or period, or of a sliding window the
-- mark or, if nothing was granted, reset after; of a sliding window retry after. Of a bucket,
-- now and the level before. They come as doubles, big-endian, in one string. If a key failed, or
-- without the library struct, they come as an array of each key's numbers: a failure stands in
-- the place of its key, as a text, and does not concern the others. One that is not the key's
-- (READONLY, OOM) is the whole reply, unless something has been granted.
local call, ARGV, struct, brief = redis.call, ARGV, rawget(_G, 'struct'), true
local limit, ttl, window = ARGV[1] + 0, ARGV[2], ARGV[3]
local cost, now = (ARGV[4] or 1) + 0, tonumber(ARGV[5])
local time = not now and call('TIME')
if time then now = time[1] * 1000000 + time[2] end
local function decide(key, n, now, dry)
  local patience = 0
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
end
local reply, at, granted, failures = {}, 0, 0, {}
for i = 1, #KEYS do
  local ok, g, a, b, c, d = pcall(decide, KEYS[i], (ARGV[5 + i] or 1) + 0, now, false)
  if not ok or not d then -- then g is an error
    -- miniredis puts the line in front of an error
    local text = type(g) == 'table' and g.err or string.gsub(tostring(g), '^[^ ]*:%d+: ', '')
    if granted == 0 and not string.find(text, '^WRONGTYPE') and not string.find(text, '^ERR') then
      return redis.error_reply(text .. ' script: it has run')
    end
    failures[i], g, a, b, c, d = text, 0, 0, 0, 0, 0
  end
  reply[at + 1], reply[at + 2], reply[at + 3], reply[at + 4] = a, b, c, d
  at, granted = at + 4, granted + g
end
if struct and not next(failures) then return struct.pack('>' .. ('d'):rep(at), unpack(reply)) end
local each = {}
for i = 1, #KEYS do
  each[i] = failures[i] or {unpack(reply, 4 * i - 3, 4 * i)}
end
return each
