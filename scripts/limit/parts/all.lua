-- Decides by several policies, and spends in all of them or in none.
--
-- KEYS     one per policy, all of one slot
-- ARGV[1]  cost    permits; 0: decide as for 1, spend nothing
-- ARGV[2]  now     in microseconds; tests only, otherwise empty: TIME
-- then four for each policy: algorithm (its word in keys), limit, ttl and window as in the
-- script of that algorithm
--
-- Reply: the seven numbers of such a script for each policy, as one array, in the order of
-- KEYS. If not all of them grant, these are of a policy that was only asked.
-- include _algorithms.lua
local cost, explicit = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = explicit
-- include _now.lua
local reply, granted = {}, 0

local function decide(dry)
  for i = 1, #KEYS do
    local a, algorithm = 4 * i - 1, ARGV[4 * i - 1]
    local time = now -- the same for all; a fixed window goes by the expiry of its key
    if algorithm == 'fixed' then time = explicit end
    local verdict = algorithms[algorithm](KEYS[i], tonumber(ARGV[a + 1]), ARGV[a + 2],
      ARGV[a + 3], cost, 1, time, dry)
    if verdict.err then return verdict end
    for j = 1, 7 do reply[7 * (i - 1) + j] = verdict[j] end
    if dry then granted = granted + verdict[1] end
  end
end

local failed = decide(true)
if failed then return failed end
if granted == #KEYS and cost > 0 then decide(false) end
return reply
