-- Makes a revision live if the one that it is based on still is. All keys share one slot.
--   KEYS: head, the new revision, perhaps an outdated one that goes
--   ARGV: the head it is based on ('' for none), the new head, the revision, the channel
-- Answers 'PUSHED', 'STALE <head>', or 'TAKEN' where a revision of that number is there already: revisions never change.
local head = redis.call('GET', KEYS[1]) or ''
if head ~= ARGV[1] then
  return 'STALE ' .. head
end
if redis.call('GET', KEYS[2]) then
  return 'TAKEN'
end
-- First, so that a user who may not announce changes nothing; who hears it cannot ask before this function has ended.
redis.call('PUBLISH', ARGV[4], ARGV[2])
redis.call('SET', KEYS[2], ARGV[3])
redis.call('SET', KEYS[1], ARGV[2])
if KEYS[3] then
  redis.call('DEL', KEYS[3])
end
return 'PUSHED'
