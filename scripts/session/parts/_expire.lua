local ms = (last - last % 1000) / 1000 + 1
if new then -- GT does nothing to a key without a TTL
  call('PEXPIREAT', key, ms)
else
  call('PEXPIREAT', key, ms, 'GT')
end
