-- This sets now, unless a test has, to the microsecond of Redis's clock. time is what
-- that said, or false.
local time = not now and call('TIME')
if time then now = time[1] * 1000000 + time[2] end
