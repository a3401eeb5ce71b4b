-- Takes the next events of a stream for a group of readers, and the lease on it: until it is
-- over, or given back by events_move.lua, no other reader of the group gets any. A holder that asks
-- again did not get the reply, and gets the same entries once more. A request that arrives after a
-- later one of the same holder gets nothing.
--
-- KEYS[1]  the group's hash: cursor, the entry that was handled last; pos, how many have been
--          added to the stream up to it, and at the last look seen, how many in all, and last,
--          the latest ID; holder, until and for, of the lease or of a pause, µs; tries, how often
--          the next entries were given out; batch, how many these were; missed, how many lost
--          entries were reported since the last events_move.lua; single, how many are to be given
--          out one by one, since they failed together
-- KEYS[2]  the stream
-- ARGV[1]  who asks, a dot, and a number that grows
-- ARGV[2]  lease, µs
-- ARGV[3]  how many at most
-- ARGV[4]  how long the group is remembered, ms
--
-- Reply: {now, entries, tries, waiting, missed, another, oldest}: ID and event of each entry, or none,
-- also where somebody else has the lease; how many wait, these included; how many are gone unread;
-- 1 if the stream is another one than before; the ID of the first that waits. now is Redis's time
-- in µs.
local call, group, stream = redis.call, KEYS[1], KEYS[2]
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]

local function whole(n) return string.format('%.0f', n) end
local function after(a, b) -- of two IDs
  local a1, a2 = a:match('^(%d+)-(%d+)$')
  local b1, b2 = b:match('^(%d+)-(%d+)$')
  a1, a2, b1, b2 = tonumber(a1), tonumber(a2), tonumber(b1), tonumber(b2)
  return a1 > b1 or a1 == b1 and a2 > b2
end

local g = call('HMGET', group, 'cursor', 'pos', 'seen', 'until', 'for', 'tries', 'batch', 'single', 'holder', 'last', 'missed')
local cursor = g[1] and g[1]:match('^%d+-%d+$')
local n = {}
for i = 2, 8 do
  n[i] = tonumber(g[i]) or 0
end
local pos, seen, held, long, tries, batch, single = n[2], n[3], n[4], n[5], n[6], n[7], n[8]
local busy = held > now and held <= now + long -- or the clock was set back
local who, turn = ARGV[1]:match('^(.*)%.(%d+)$')
local holder, its = (g[9] or ''):match('^(.*)%.(%d+)$')
local mine = busy and holder == who and tonumber(turn) > tonumber(its)
busy = busy and not mine

local length, added, last, first = 0, 0, '0-0', false -- added is false on miniredis, which does not count
if call('EXISTS', stream) == 1 then
  local info = call('XINFO', 'STREAM', stream)
  added = false
  for i = 1, #info, 2 do
    if info[i] == 'length' then
      length = info[i + 1]
    elseif info[i] == 'entries-added' then
      added = info[i + 1]
    elseif info[i] == 'last-generated-id' then
      last = info[i + 1]
    elseif info[i] == 'first-entry' then
      first = info[i + 1] and info[i + 1][1]
    end
  end
end
-- Of the same stream never less has been added, and while nothing has been trimmed its first entry
-- stays.
local missed, another = 0, cursor and (added and added < math.max(pos, seen) or last ~= '0-0' and after(cursor, last) or
  added and seen > 0 and added == length and first and g[10] and after(first, g[10]))
if another then
  missed = math.max(0, seen - pos)
end
if another or not cursor then
  cursor, pos, tries, batch, single = '0-0', added and added - length or 0, 0, 0, 0
elseif added and added - length > pos then
  missed, pos, tries, single = added - length - pos, added - length, 0, 0
end
if tries > 0 and single == 0 and not mine then
  single = batch
end
local take = not busy and (single > 0 and 1 or ARGV[3]) or 1
local entries = length > 0 and call('XRANGE', stream, '(' .. cursor, '+', 'COUNT', take) or {}
local oldest = entries[1] and entries[1][1] or ''
local waiting = #entries > 0 and (added and added - pos or #entries) or 0
if busy then
  return {now, {}, 0, waiting, 0, 0, oldest}
end
-- First what a full Redis permits: from then on it lets the script write, and what is read may be
-- what makes room.
call('HDEL', group, '')
if #entries > 0 then
  missed = missed + (tonumber(g[11]) or 0)
  tries = mine and math.max(1, tries) or tries + 1
  call('HSET', group, 'holder', ARGV[1], 'until', whole(now + ARGV[2]), 'for', ARGV[2], 'batch', #entries, 'missed', missed)
end
if #entries > 0 or another or missed > 0 then
  call('HSET', group, 'cursor', cursor, 'pos', whole(pos), 'seen', whole(added or 0), 'last', last, 'tries', tries, 'single', single)
  call('PEXPIRE', group, ARGV[4])
end
local out = {}
for _, entry in ipairs(entries) do
  out[#out + 1] = entry[1]
  local event = ''
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'e' then
      event = entry[2][i + 1]
    end
  end
  out[#out + 1] = event
end
return {now, out, tries, waiting, missed, another and 1 or 0, oldest}
