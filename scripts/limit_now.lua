-- This sets now, unless a test has, to the microsecond of Redis's clock.
if not now then
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end
