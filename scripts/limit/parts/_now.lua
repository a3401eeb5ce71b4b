local time = not now and call('TIME')
if time then now = time[1] * 1000000 + time[2] end
