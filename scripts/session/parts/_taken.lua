-- Whether what stands at a field must stay. A copy keeps its place, and is not made again.
local function taken(there)
  local format, flags = there:byte(1, 2)
  if format == 1 then
    return #there >= 53 and times('>I7', there, flags % 16 >= 8 and 31 or 45) > now
  end
  return #there >= 41 and times('>I7', there, 10) > now
end
