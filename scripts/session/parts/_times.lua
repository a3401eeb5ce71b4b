local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]

-- Times are seven bytes, big-endian. miniredis has no struct.
local struct = rawget(_G, 'struct')
local times = struct and struct.unpack or function(format, s, i)
  local out = {}
  for k = 1, (#format - 1) / 2 do
    out[k] = 0
    for j = i + 7 * k - 7, i + 7 * k - 1 do
      out[k] = out[k] * 256 + s:byte(j)
    end
  end
  return unpack(out)
end
