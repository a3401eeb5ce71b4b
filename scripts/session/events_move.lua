-- Gives back the lease of events_take.lua, after what was taken has been handled, or has failed.
--
-- KEYS[1]  the group's hash
-- ARGV[1]  who had taken it, as events_take.lua was told
-- ARGV[2]  ID of the last entry that was handled; "": none was, and it is to be tried again
-- ARGV[3]  how many were handled
-- ARGV[4]  for how long nobody gets it, µs
-- ARGV[5]  "1": the failure is none of the events', and does not count as a try; "2": it may be
--          that of one of them: they are to come one by one
--
-- Reply: 1, or 0: somebody else has the lease, and nothing was changed
local call, group = redis.call, KEYS[1]
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local g = call('HMGET', group, 'holder', 'pos', 'single', 'tries', 'batch')
if g[1] ~= ARGV[1] then
  return 0
end
call('HDEL', group, '') -- see events_take.lua
local tries = tonumber(g[4]) or 0
if ARGV[2] ~= '' then
  call('HSET', group, 'cursor', ARGV[2], 'pos', string.format('%.0f', g[2] + ARGV[3]), 'single', math.max(0, (tonumber(g[3]) or 0) - ARGV[3]), 'tries', 0)
elseif ARGV[5] ~= '' then
  call('HSET', group, 'tries', math.max(0, tries - 1))
  if ARGV[5] == '2' then
    call('HSET', group, 'single', g[5] or 0)
  end
end
call('HSET', group, 'missed', 0, 'holder', '', 'until', string.format('%.0f', now + ARGV[4]), 'for', ARGV[4])
return 1
