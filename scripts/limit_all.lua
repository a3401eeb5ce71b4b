-- Decides by several policies, and spends in all of them or in none.
--
-- KEYS     one per policy, all of one slot
-- ARGV[1]  cost    permits; 0: decide as for 1, spend nothing
-- ARGV[2]  now     in microseconds; tests only, otherwise empty: TIME
-- then four for each policy: algorithm ('sliding', 'fixed' or 'bucket'), limit, ttl
-- and window as in limit_take.lua
--
-- Reply: the seven numbers of limit_take.lua for each policy, as an array, in the order of
-- KEYS. If not all of them grant, these are of a policy that was only asked.
--
-- sliding, fixed and bucket come before it: functions of limit_sliding.lua and so on.
local algorithms = {sliding = sliding, fixed = fixed, bucket = bucket}
local cost, explicit = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = explicit
-- include limit_now.lua
local reply, granted = {}, 0

local function decide(dry)
  for i = 1, #KEYS do
    local a, algorithm = 4 * i - 1, ARGV[4 * i - 1]
    local time = now -- the same for all; a fixed window goes by the expiry of its key
    if algorithm == 'fixed' then time = explicit end
    local verdict = algorithms[algorithm](KEYS[i], tonumber(ARGV[a + 1]), ARGV[a + 2],
      ARGV[a + 3], cost, 1, time, dry)
    for j = 1, 7 do reply[7 * (i - 1) + j] = verdict[j] end
    if dry then granted = granted + verdict[1] end
  end
end

decide(true)
if granted == #KEYS and cost > 0 then decide(false) end
return reply
