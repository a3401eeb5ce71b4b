-- Takes the next events of a stream for a group of readers, and the lease on it: until it is
-- over, or given back by events_move.lua, nobody else of the group gets any.
--
-- KEYS[1]  the group's hash: cursor, the entry that was handled last, and pos, how many have been
--          added to the stream up to it; holder and until of the lease, µs; tries, how often the
--          next entries were given out; batch, how many these were; single, how many are to be
--          given out one by one, since they failed together
-- KEYS[2]  the stream
-- ARGV[1]  who asks
-- ARGV[2]  lease, µs
-- ARGV[3]  how many at most
-- ARGV[4]  how long the group is remembered, ms
--
-- Reply: {now, entries, tries, waiting, missed, begins}: ID and event of each entry, or none, also
-- where somebody else has the lease; how many wait, these included; how many are gone unread; 1
-- if the group has no cursor, or the stream is another one. now is Redis's time in µs.
local call, group, stream = redis.call, KEYS[1], KEYS[2]
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]

local g = call('HMGET', group, 'cursor', 'pos', 'until', 'tries', 'batch', 'single', 'holder')
local cursor, pos, held = g[1] or '0-0', tonumber(g[2]) or 0, tonumber(g[3]) or 0
local tries, batch, single = tonumber(g[4]) or 0, tonumber(g[5]) or 0, tonumber(g[6]) or 0
if held > now and held <= now + 2 * ARGV[2] and g[7] ~= ARGV[1] then -- or the clock was set back
  return {now, {}, 0, -1, 0, 0}
end
local length, added = 0, 0 -- added is false on miniredis, which does not count
if call('EXISTS', stream) == 1 then
  local info = call('XINFO', 'STREAM', stream)
  added = false
  for i = 1, #info, 2 do
    if info[i] == 'length' then
      length = info[i + 1]
    elseif info[i] == 'entries-added' then
      added = info[i + 1]
    end
  end
end
local missed, begins = 0, not g[1] and length > 0
if added and added < pos then -- the stream was deleted, or has expired
  cursor, pos, tries, batch, single, begins = '0-0', 0, 0, 0, 0, true
  call('HSET', group, 'cursor', cursor, 'pos', 0, 'tries', 0, 'single', 0)
  call('PEXPIRE', group, ARGV[4])
end
if added and added - length > pos then
  missed, pos = added - length - pos, added - length
  tries, single = 0, 0
end
if tries > 0 and single == 0 then
  single = batch
end
local entries = length > 0 and call('XRANGE', stream, '(' .. cursor, '+', 'COUNT', single > 0 and 1 or ARGV[3]) or {}
if #entries == 0 then
  return {now, {}, 0, 0, missed, begins and 1 or 0}
end
tries = tries + 1
call('HSET', group, 'cursor', cursor, 'pos', string.format('%.0f', pos), 'holder', ARGV[1], 'until', string.format('%.0f', now + ARGV[2]),
  'tries', tries, 'batch', #entries, 'single', single)
call('PEXPIRE', group, ARGV[4])
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
return {now, out, tries, added and added - pos or #entries, missed, begins and 1 or 0}
