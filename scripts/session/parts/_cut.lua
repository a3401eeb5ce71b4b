-- A record without its values: up to the end of the owner's box.
local function cut(r)
  local at = r:byte(53) == 1 and 70 or 54
  if r:byte(2) % 4 == 3 then
    at = at + 22
  end
  local high, low = r:byte(at, at + 1)
  local salt = r:sub(3, 6) == '\0\0\0\0' and 0 or 4
  return r:sub(1, at + 1 + salt + (high or 0) * 256 + (low or 0))
end
