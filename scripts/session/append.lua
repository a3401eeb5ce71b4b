-- Appends events that the script of their act could not append.
--
-- KEYS[1]  the stream of a partition's events
-- ARGV[1]  how long events stay, ms
-- ARGV[2]  how many stay, about
-- ARGV[3]  events older than this are removed, ms since 1970
-- ARGV     events
--
-- Reply: how many
for i = 4, #ARGV do
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', tonumber(ARGV[2]), '*', 'e', ARGV[i])
end
redis.call('XTRIM', KEYS[1], 'MINID', '~', tonumber(ARGV[3]))
redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[1]))
return #ARGV - 3
