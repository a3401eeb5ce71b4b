-- Publishes the end of a session for those who watch it. Where that is not permitted, they
-- learn of it by looking.
local function tell(handle)
  redis.pcall('PUBLISH', key:match('^[^{]*') .. 'ended', key:match('[^:]*$') .. handle)
end
