-- include _tell.lua
-- Ends what stands at a field: a tombstone takes its place, which keeps the handle, stays
-- for the Grace and until a time, and gives a reason. Of one that is there it keeps where
-- it leads, its reason, and how long it stays. It publishes the end for watchers. What has
-- lived is 1, and 3 if it keeps the place of a copy, so that none is made again.
--
-- The script has a variable last: when the last thing that stays goes. none is the handle of
-- nobody. freed: something was deleted, after which a full Redis lets the script write.
local freed, none = false, ('\0'):rep(9)
local function bury(field, there, grace, till, reason, mark, copy)
  local lived, handle, next = '\0', mark, ('\0'):rep(16)
  local ends = math.max(now + grace, till)
  local format, flags = 0, 0
  if there then
    format, flags = there:byte(1, 2)
  end
  if format == 1 then
    lived = '\1'
    if #there >= 53 then
      handle = there:sub(15, 23)
      if flags % 16 >= 8 then -- a copy
        lived, ends = '\3', math.max(ends, (times('>I7', there, 31)))
      end
      tell(handle)
    end
  elseif (format == 2 or format == 3) and #there >= 41 then
    if there:byte(2) % 2 == 1 then -- or it shows a mark, which this one does not inherit
      lived, handle = there:sub(2, 2), there:sub(17, 25)
    end
    ends, next = math.max(ends, (times('>I7', there, 10))), there:sub(26, 41)
    reason = format == 3 and there:sub(42) or reason
  end
  if mark ~= none then
    lived, handle = lived == '\3' and lived or '\0', mark
  end
  if copy then
    lived = '\3'
  end
  -- First what a full Redis permits.
  if not freed or format ~= 1 or (flags or 16) >= 16 then
    call('HDEL', key, 'v' .. field)
    freed = true
  end
  call('HSET', key, field, '\3' .. lived .. pack('>I7I7', now + grace, ends) .. handle .. next .. reason)
  last = math.max(last, ends)
end
