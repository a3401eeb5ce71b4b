-- Publishes the end of a session for those who watch it. Where that is not permitted, they
-- learn of it by looking.
local channel, owner
local function tell(handle)
  channel, owner = channel or key:match('^[^{]*') .. 'ended', owner or key:match('[^:]*$')
  redis.pcall('PUBLISH', channel, owner .. handle)
end
