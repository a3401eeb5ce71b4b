-- Goes over what stands at the IDs of an owner. The hash's other fields are put into a list, if
-- there is one, and none of them is read. A hundred are read ahead: the loop may delete no field but
-- the one that it is at.
local function each(others)
  local fields, n, i, some = {}, 0, 0, nil
  for _, f in ipairs(call('HKEYS', key)) do
    if #f == 16 then
      n = n + 1
      fields[n] = f
    elseif others then
      others[#others + 1] = f
    end
  end
  return function()
    i = i + 1
    if i > n then
      return nil
    end
    if i % 100 == 1 then
      some = call('HMGET', key, unpack(fields, i, math.min(i + 99, n)))
    end
    return fields[i], some[(i - 1) % 100 + 1]
  end
end
