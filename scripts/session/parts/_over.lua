-- Whether what stands is over, by its own time or the idle timeout that is configured now. Who
-- held it while it did not answer does not bring it back.
local function over(touched, ends, idle)
  idle = tonumber(idle)
  return ends <= now or idle > 0 and touched + idle + 2 ^ there:byte(52) <= now
end
