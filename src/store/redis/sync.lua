-- One account's sync: line by line what `ledger::account::sync` does, which is the law; a contract suite compares the two.
--
-- KEYS[1]  the account's hash. Nothing else is touched, so that it runs in a Cluster.
-- ARGV     row granted returned charged debt need target limit version create close learn_ms wiped [now_ms run]
--          (create, wiped: 1 or 0; close: 'settled', 'forfeited', 'reclaimed' or ''; clock and run id are the server's own unless given)
-- Replies  'MERGED granted returned charged debt free elsewhere limit version charged debt learning starving closed credited',
--          'NOACCOUNT', 'BADREPORT' or 'DAMAGED'.
--
-- The hash:  schema '1' · limit · version · run · learn (ms) · starving 'row lacking until_ms' or '' · archived 'charged debt'
--            and per purse, under its row's id: 'granted returned charged debt seen_ms closed_ms', the last one '-' while open.
-- Amounts stay below 2^53, where Lua's numbers are exact; they leave by '%.0f', because '..' keeps 14 digits.

local MAX = 9007199254740991
local ACTIVE_MS, STARVING_MS, ARCHIVE_MS, SILENT_MS = 10000, 3000, 3600000, 30000

local key, own = KEYS[1], ARGV[1]
local report = { granted = tonumber(ARGV[2]), returned = tonumber(ARGV[3]), charged = tonumber(ARGV[4]), debt = tonumber(ARGV[5]) }
local need, target = math.min(tonumber(ARGV[6]), MAX), math.min(tonumber(ARGV[7]), MAX)
local limit, version = math.min(tonumber(ARGV[8]), MAX), tonumber(ARGV[9])
local create, close, learn_ms, wiped = ARGV[10] == '1', ARGV[11], tonumber(ARGV[12]), ARGV[13] == '1'

local now, run = tonumber(ARGV[14]), ARGV[15]
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
end

local function whole(number) return string.format('%.0f', number) end
local function sub(a, b) return math.max(a - b, 0) end
local function add(a, b) return math.min(a + b, MAX) end
local function process(row) return string.sub(row, 1, 16) end
local function is_credit(row) return string.sub(row, 17) == '.4294967295' end

local function held(row) return sub(row.granted, row.returned) end
local function is_sound(row)
  return row.granted <= MAX and row.returned <= MAX and row.charged <= MAX and row.debt <= MAX
    and row.returned + row.charged <= row.granted
end

-- === the account as it is stored ===

local stored, rows, is_damaged = {}, {}, false
local fields = redis.call('HGETALL', key)
for at = 1, #fields, 2 do
  local name, text = fields[at], fields[at + 1]
  stored[name] = text
  if string.find(name, '^%x+%.%d+$') then
    local granted, returned, charged, debt, seen, closed = string.match(text, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%S+)$')
    if granted and (closed == '-' or tonumber(closed)) then
      rows[name] = {
        granted = tonumber(granted), returned = tonumber(returned), charged = tonumber(charged), debt = tonumber(debt),
        seen = tonumber(seen), closed = closed ~= '-' and tonumber(closed) or nil,
      }
    else
      is_damaged = true
    end
  end
end

local account = nil
if #fields > 0 then
  local charged, debt = string.match(stored.archived or '', '^(%d+) (%d+)$')
  account = {
    limit = tonumber(stored.limit), version = tonumber(stored.version), run = stored.run, learn = tonumber(stored.learn),
    archived_charged = tonumber(charged), archived_debt = tonumber(debt),
  }
  local row, lacking, till = string.match(stored.starving or '', '^(%S+) (%d+) (%d+)$')
  if row then account.starving = { row = row, lacking = tonumber(lacking), till = tonumber(till) } end
  is_damaged = is_damaged or stored.schema ~= '1'
    or not (account.limit and account.version and account.run and account.learn and charged and debt)
end
if is_damaged then return 'DAMAGED' end

-- === what can be refused ===

local known = rows[own] or { granted = 0, returned = 0, charged = 0, debt = 0, seen = 0 }
local merged = {
  granted = math.max(known.granted, report.granted), returned = math.max(known.returned, report.returned),
  charged = math.max(known.charged, report.charged), debt = math.max(known.debt, report.debt),
}
if is_credit(own) and not account then return 'NOACCOUNT' end
if not is_credit(own) and not known.closed and not is_sound(merged) then return 'BADREPORT' end
if not account and not create then return 'NOACCOUNT' end

-- === the account, its server, its limit ===

if not account then
  -- One that was in use before is being restored by its holders: it listens to all of them first.
  local may_be_in_use = wiped or report.granted > 0 or report.returned > 0 or report.charged > 0 or report.debt > 0
  account = {
    limit = limit, version = version, run = run, learn = may_be_in_use and now + learn_ms or 0,
    archived_charged = 0, archived_debt = 0,
  }
end
if account.run ~= run then
  account.run = run
  account.learn = now + learn_ms
end
account.learn = math.min(account.learn, now + learn_ms)
if version > account.version and not is_credit(own) then
  account.version = version
  account.limit = limit
end

-- === sums over its rows ===

local function total(start, amount)
  local sum = start
  for _, row in pairs(rows) do sum = add(sum, amount(row)) end
  return sum
end
local function total_held() return total(account.archived_charged, held) end
local function total_charged() return total(account.archived_charged, function(row) return row.charged end) end
local function total_debt() return total(account.archived_debt, function(row) return row.debt end) end
local function credited()
  local sum = 0
  for id, row in pairs(rows) do
    if is_credit(id) then sum = add(sum, row.returned) end
  end
  return sum
end
local function spendable() return add(account.limit, credited()) end
local function free() return sub(sub(spendable(), total_held()), total_debt()) end

-- Open rows of other processes that were heard of lately: how many, and what could still come back from them.
local function others()
  local count, elsewhere = 0, 0
  for id, row in pairs(rows) do
    if process(id) ~= process(own) and not row.closed and math.abs(now - row.seen) < ACTIVE_MS then
      count = count + 1
      elsewhere = add(elsewhere, sub(held(row), row.charged))
    end
  end
  return count, elsewhere
end

-- The purse of another process for which money is kept. The upper end is for clocks that were set back.
local function starving_other()
  local starving = account.starving
  if starving and process(starving.row) ~= process(own) and now < starving.till and starving.till <= now + STARVING_MS then
    return starving
  end
end

-- === merge and grant ===

local function merge_row()
  local seen = known.seen
  -- Half the window is exact enough, and leaves a report without news without a write.
  if math.abs(now - seen) > ACTIVE_MS / 2 then seen = now end
  merged.seen = seen
  if close == 'settled' or close == 'reclaimed' then merged.returned = merged.granted - merged.charged end
  if close == 'forfeited' then merged.charged = merged.granted - merged.returned end
  if close ~= '' then merged.closed = now end
  rows[own] = merged
end

-- An operator closes a purse that was silent for long.
local function reclaim()
  if rows[own] and math.abs(now - known.seen) >= math.max(SILENT_MS, learn_ms * 4) then merge_row() end
end

-- What a closed purse turns out to have spent after all is debt, since its money went back.
local function book_late()
  if is_sound(report) then
    known.debt = math.max(known.debt, add(report.debt, sub(report.charged, known.charged)))
  end
end

-- Gives back what was spent, each note once; false when that is more than was spent.
local function credit()
  if rows[own] then return true end
  local amount = report.returned
  local spent = add(total_charged(), total_debt())
  local is_note = report.granted == amount and report.charged == 0 and report.debt == 0
  if not is_note or amount > sub(spent, credited()) then return false end
  rows[own] = { granted = amount, returned = amount, charged = 0, debt = 0, seen = now, closed = now }
  return true
end

local function note_starving(lacking)
  if starving_other() then return end
  local noted = account.starving
  local is_fresh = noted and noted.row == own and noted.lacking == lacking and noted.till > now + STARVING_MS / 2
  if lacking == 0 then
    account.starving = nil
  elseif not is_fresh then
    account.starving = { row = own, lacking = lacking, till = now + STARVING_MS }
  end
end

-- What calls wait for comes first; beyond it, a purse gets all that is free only while it is alone, else a share.
local function grant()
  local row = rows[own]
  if row.closed then return end
  local starving = starving_other()
  local available = sub(free(), starving and starving.lacking or 0)
  local count, elsewhere = others()
  local share = count == 0 and available or math.floor(available / (2 * (1 + count)))
  if now >= account.learn then
    local needed = sub(need, row.granted)
    local wished = math.max(sub(target, row.granted), needed)
    row.granted = row.granted + math.min(wished, math.max(needed, share), available)
  end
  note_starving(elsewhere > 0 and sub(need, row.granted) or 0)
end

-- Folds rows that were closed long ago into two sums, so that restarts don't make an account grow.
local archived = {}
local function archive()
  for id, row in pairs(rows) do
    if row.closed and not is_credit(id) and sub(now, row.closed) >= ARCHIVE_MS then archived[#archived + 1] = id end
  end
  for _, id in ipairs(archived) do
    account.archived_charged = add(account.archived_charged, rows[id].charged)
    account.archived_debt = add(account.archived_debt, rows[id].debt)
    rows[id] = nil
  end
end

if is_credit(own) then
  if not credit() then return 'BADREPORT' end
else
  if known.closed then
    book_late()
  elseif close == 'reclaimed' then
    reclaim()
  else
    merge_row()
    grant()
  end
  archive()
end

-- === write what changed ===

local changes = {}
local function put(name, text, again)
  if again or stored[name] ~= text then
    changes[#changes + 1] = name
    changes[#changes + 1] = text
  end
end
local starving = account.starving
put('schema', '1')
put('limit', whole(account.limit))
put('version', whole(account.version))
put('run', account.run)
put('learn', whole(account.learn))
put('starving', starving and table.concat({ starving.row, whole(starving.lacking), whole(starving.till) }, ' ') or '')
put('archived', whole(account.archived_charged) .. ' ' .. whole(account.archived_debt))
local row = rows[own]
if row then
  -- A grant that the purse has not heard of is written again when it is told again: the WAIT that follows waits for what its
  -- own connection wrote, and the one that wrote it first may be gone, with replicas that never got it.
  put(own, table.concat({
    whole(row.granted), whole(row.returned), whole(row.charged), whole(row.debt), whole(row.seen),
    row.closed and whole(row.closed) or '-',
  }, ' '), row.granted > report.granted)
end
-- First what can fail (memory), and only then what would be missing from the sums.
if #changes > 0 then redis.call('HSET', key, unpack(changes)) end
for _, id in ipairs(archived) do redis.call('HDEL', key, id) end

-- === the answer ===

row = row or { granted = 0, returned = 0, charged = 0, debt = 0 }
local _, elsewhere = others()
local asked_back = starving_other() or total_held() + total_debt() > spendable()
return table.concat({
  'MERGED', whole(row.granted), whole(row.returned), whole(row.charged), whole(row.debt), whole(free()), whole(elsewhere),
  whole(account.limit), whole(account.version), whole(total_charged()), whole(total_debt()),
  now < account.learn and 1 or 0, asked_back and 1 or 0, row.closed and 1 or 0, whole(credited()),
}, ' ')
