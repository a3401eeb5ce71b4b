-- Looks for the events of an owner, from the newest back.
--
-- KEYS[1]  the stream of the owner's partition
-- ARGV[1]  owner, as entries have it
-- ARGV[2]  ID of the entry before which to look; "": the newest is looked at first
-- ARGV[3]  how many entries are looked at
-- ARGV[4]  how many events are wanted
--
-- Reply: {next, events...}: where to go on, "" at the end. An entry in which the owner stands by chance
-- may be among them.
local entries = redis.call('XREVRANGE', KEYS[1], ARGV[2] == '' and '+' or '(' .. ARGV[2], '-', 'COUNT', ARGV[3])
local reply, left = {''}, ARGV[4] + 0
for n, entry in ipairs(entries) do
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'e' and entry[2][i + 1]:find(ARGV[1], 1, true) then
      reply[#reply + 1] = entry[2][i + 1]
      left = left - 1
    end
  end
  if left == 0 or n == ARGV[3] + 0 then
    reply[1] = entry[1]
    break
  end
end
return reply
