-- The store's mark: how long one server has held what it holds. Replies with the mark and the server's clock (ms).
--
-- KEYS[1]  the mark: 'since_ms run born_ms'. Which server (its run id) has held the accounts since when, and when the first was made.

local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')

local mark = redis.call('GET', KEYS[1])
local known, born = string.match(mark or '', '^%d+ (%x+) (%d+)$')
if known ~= run then
  mark = now .. ' ' .. run .. ' ' .. (born or now)
  redis.call('SET', KEYS[1], mark)
end
return { mark, now }
