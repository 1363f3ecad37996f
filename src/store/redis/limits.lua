-- One replica's reports on windows of rate limits: for each of them what `policy::share::rebalance` does, which is the law; a
-- contract suite compares the two.
--
-- KEYS[1]   the replicas: 'run' · 'learn' (ms) · and per replica, under its id, when it was last heard of (ms)
-- KEYS[2…]  the windows: per replica, under its id, 'number hold used rate seen_ms'. All keys share a hash tag, and expire.
-- ARGV      replica number silence_ms learn_ms known_run leaving now run (clock and run id are the server's own unless given)
--           and per window: limit window_ms hold used rate want
-- Replies   'learning replicas run', and per window 'cap free alone', or 'OLD' to a report that is not the newest.
--
-- Counts stay below 2^53, where Lua's numbers are exact; they leave by '%.0f', because '..' keeps 14 digits.

local MAX, DAY_MS = 9007199254740991, 86400000
local own, number = ARGV[1], tonumber(ARGV[2])
local silence_ms, learn_ms, known_run, leaving = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5], ARGV[6] == '1'
local now, run = tonumber(ARGV[7]), ARGV[8]
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

local function whole(count) return string.format('%.0f', count) end
local function is_id(name) return string.find(name, '^%x+$') and #name == 16 end

-- === the replicas, and whether the server may have lost something ===

local stored = {}
local fields = redis.call('HGETALL', KEYS[1])
for at = 1, #fields, 2 do stored[fields[at]] = fields[at + 1] end

local learn = tonumber(stored.learn or '0') or 0
if stored.run ~= run then
  -- A server that neither side has heard of holds nothing that could be missing.
  if stored.run or known_run ~= '' then learn = now + learn_ms end
end
learn = math.min(learn, now + learn_ms)
local learning = now < learn

redis.call('HSET', KEYS[1], 'run', run, 'learn', whole(learn), own, whole(now))
redis.call('PEXPIRE', KEYS[1], DAY_MS)
local replicas = 1
for id, seen in pairs(stored) do
  if is_id(id) and id ~= own then
    if math.abs(now - (tonumber(seen) or 0)) < silence_ms then
      replicas = replicas + 1
    else
      redis.call('HDEL', KEYS[1], id)
    end
  end
end
if leaving then redis.call('HDEL', KEYS[1], own) end

-- === windows ===

-- Rows by id; those that have nothing in any window any more are removed, as is what is no row.
local function read(key, window_ms)
  local rows = {}
  local fields = redis.call('HGETALL', key)
  for at = 1, #fields, 2 do
    local id = fields[at]
    local nr, hold, used, rate, seen = string.match(fields[at + 1], '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
    if nr and is_id(id) and math.abs(now - tonumber(seen)) < window_ms + 3 * silence_ms then
      rows[id] = { number = tonumber(nr), hold = tonumber(hold), used = tonumber(used), rate = tonumber(rate), seen = tonumber(seen) }
    else
      redis.call('HDEL', key, id)
    end
  end
  return rows
end

local function part(rate, rates, count)
  if rates == 0 then return 1 / count end
  return (15 * count * rate + rates) / (16 * count * rates)
end

local function rebalance(key, report)
  local rows = read(key, report.window_ms)
  if rows[own] and rows[own].number >= number then return 'OLD' end
  rows[own] = nil
  local hold, used, rates, count = 0, 0, report.rate, 1
  for _, row in pairs(rows) do
    hold, used = math.min(hold + row.hold, MAX), math.min(used + row.used, MAX)
    if math.abs(now - row.seen) < silence_ms then rates, count = rates + row.rate, count + 1 end
  end
  local room = math.max(report.limit - hold, 0)
  local free = math.max(report.limit - (used + report.used), 0)
  local due = part(report.rate, rates, count)
  local target
  if free > math.floor(report.limit / 16) then
    target = report.used + math.ceil(free * due)
    if replicas > 1 then
      room = math.min(room, report.hold + math.ceil(math.max(room - report.hold, 0) / 2))
    end
  else
    target = math.ceil(report.limit * due)
  end
  local cap = math.min(target, room, report.want)
  if learning then cap = math.min(cap, report.hold) end
  local held = math.max(cap, report.hold)
  if held > 0 or report.want > 0 then
    local row = { whole(number), whole(held), whole(report.used), whole(report.rate), whole(now) }
    redis.call('HSET', key, own, table.concat(row, ' '))
    redis.call('PEXPIRE', key, report.window_ms + 3 * silence_ms)
  else
    redis.call('HDEL', key, own)
  end
  return table.concat({ whole(cap), whole(free), next(rows) and 0 or 1 }, ' ')
end

local answers = { table.concat({ learning and 1 or 0, replicas, run }, ' ') }
for index = 2, #KEYS do
  local at = 9 + (index - 2) * 6
  answers[index] = rebalance(KEYS[index], {
    limit = tonumber(ARGV[at]), window_ms = tonumber(ARGV[at + 1]), hold = tonumber(ARGV[at + 2]),
    used = tonumber(ARGV[at + 3]), rate = tonumber(ARGV[at + 4]), want = tonumber(ARGV[at + 5]),
  })
end
return answers
