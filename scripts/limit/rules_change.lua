-- Sets or removes a rule, or notes what an operator has done besides, and tells all servers.
--
-- KEYS[1]  the hash of rules, see rules_load.lua
-- KEYS[2]  the stream of changes, in the same slot
-- ARGV[1]  what: "set", "removed" or "reset"
-- ARGV[2]  field: policy, colon, subject
-- ARGV[3]  the rule: 16 digits, the µs at which it ends or zeros, and what is not read here
-- ARGV[4]  version that the rules have from now on; never one that they had before
-- ARGV[5]  how many rules there may be
-- ARGV[6]  how many changes are kept, about
-- ARGV[7]  for how long rules and changes are kept, ms
-- ARGV[8]  channel
--
-- Reply: "ok"; or, and nothing was changed: "over", the rule's end has come; "full"; "none", there
-- is no such rule to be removed.
--
-- Rules that are over go: of some at random with each rule that is set, and when there are as many as
-- there may be up to 1,000 of all. The hash goes with its last rule.
local call, rules = redis.call, KEYS[1]
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]

local function ends(rule)
  local digits = rule:match('^%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d')
  return digits and digits + 0 or 0 -- what cannot be read is not ours to remove
end

local function note() -- before the change: what cannot be noted is not done
  call('HDEL', rules, ' ') -- no rule's field: a full Redis lets the script write after it
  call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[6], '*', 'what', ARGV[1], 'of', ARGV[2], 'rule', ARGV[3])
  call('PEXPIRE', KEYS[2], ARGV[7])
end

if ARGV[1] == 'set' then
  local its = ends(ARGV[3])
  if its > 0 and its <= now then
    return 'over'
  end
  local over, most = {}, ARGV[5] + 1 -- with the version
  local full = call('HLEN', rules) >= most and call('HEXISTS', rules, ARGV[2]) == 0
  local some = full and call('HGETALL', rules) or call('HRANDFIELD', rules, 20, 'WITHVALUES')
  for i = 1, #some, 2 do
    local till = ends(some[i + 1])
    if till > 0 and till <= now and #over < 1000 then
      over[#over + 1] = some[i]
    end
  end
  if full and #over == 0 then
    return 'full'
  end
  note()
  if #over > 0 then call('HDEL', rules, unpack(over)) end
  call('HSET', rules, '', ARGV[4], ARGV[2], ARGV[3])
  call('PEXPIRE', rules, ARGV[7])
elseif ARGV[1] == 'removed' then
  if call('HEXISTS', rules, ARGV[2]) == 0 then
    return 'none'
  end
  note()
  call('HDEL', rules, ARGV[2])
  if call('HLEN', rules) > 1 then
    call('HSET', rules, '', ARGV[4])
  else
    call('UNLINK', rules)
  end
else
  note()
end
if ARGV[1] ~= 'reset' then
  redis.pcall('PUBLISH', ARGV[8], '') -- where that is not permitted, servers learn of it by looking
end
return 'ok'
