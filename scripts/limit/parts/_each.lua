local reply, at, granted, failures = {}, 0, 0, {}
for i = 1, #KEYS do
  local ok, a, b, c, d, e, f, g = pcall(decide, KEYS[i], (ARGV[5 + i] or 1) + 0, now, false)
  if not ok or not g then -- without seven numbers, a is an error
    -- miniredis puts the line in front of an error
    local text = type(a) == 'table' and a.err or string.gsub(tostring(a), '^[^ ]*:%d+: ', '')
    if granted == 0 and not string.find(text, '^WRONGTYPE') and not string.find(text, '^ERR') then
      return redis.error_reply(text .. ' script: it has run')
    end
    failures[i], a, b, c, d, e, f, g = text, 0, 0, 0, 0, 0, 0, 0
  end
  reply[at + 1], reply[at + 2], reply[at + 3], reply[at + 4], reply[at + 5], reply[at + 6], reply[at + 7] = a, b, c, d, e, f, g
  at, granted = at + 7, granted + a
end
if struct and not next(failures) then return struct.pack('>' .. ('d'):rep(at), unpack(reply)) end
local each = {}
for i = 1, #KEYS do
  each[i] = failures[i] or {unpack(reply, 7 * i - 6, 7 * i)}
end
return each
