local verdicts, failed = {}, false
local function granted()
  for _, v in ipairs(verdicts) do
    if type(v) == 'table' and v[1] > 0 or type(v) == 'string' and string.byte(v) ~= 0 and string.byte(v) ~= 45 then return true end
  end
end
for i, key in ipairs(KEYS) do
  local ok, verdict = pcall(decide, key, (ARGV[5 + i] or 1) + 0, now, false)
  if ok and type(verdict) == 'table' and verdict.err then ok = false end
  if not ok then
    local text = type(verdict) == 'table' and verdict.err or tostring(verdict)
    if not string.find(text, '^WRONGTYPE') and not string.find(text, '^ERR') and not granted() then
      return redis.error_reply(text .. ' script: it has run')
    end
    verdict, failed = '-' .. text, true
  end
  verdicts[i] = verdict
end
if failed or not struct then return verdicts end
return table.concat(verdicts)
