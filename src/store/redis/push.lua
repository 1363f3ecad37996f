-- Makes a revision live if the one that it is based on still is. All keys share one slot.
--   KEYS: head, the new revision, perhaps an outdated one that goes
--   ARGV: the head it is based on ('' for none), the new head, the revision, the channel, 'mute' where it need not be announced
-- Answers 'PUSHED', 'STALE <head>', or 'TAKEN' where a revision of that number is there already: revisions never change.
local head = redis.call('GET', KEYS[1]) or ''
if head ~= ARGV[1] then
  return 'STALE ' .. head
end
if redis.call('GET', KEYS[2]) then
  return 'TAKEN'
end
-- First, so that a user who may not announce changes nothing; who hears it cannot ask before this function has ended.
local announced = redis.pcall('PUBLISH', ARGV[4], ARGV[2])
if type(announced) == 'table' and announced.err and ARGV[5] ~= 'mute' then
  return announced
end
redis.call('SET', KEYS[2], ARGV[3])
redis.call('SET', KEYS[1], ARGV[2])
if KEYS[3] then
  -- A user who may not delete keeps them all.
  redis.pcall('DEL', KEYS[3])
end
return 'PUSHED'
