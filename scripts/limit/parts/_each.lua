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
