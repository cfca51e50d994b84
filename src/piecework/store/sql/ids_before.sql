-- Events whose ids are no longer looked at for duplicates, and that nobody is to be told of any more.
SELECT seq FROM events WHERE event_id IS NOT NULL AND accepted_at < :before
  AND seq NOT IN (SELECT event_seq FROM runs WHERE ended_at IS NULL AND event_seq IS NOT NULL)
  AND seq NOT IN (SELECT event_seq FROM deliveries WHERE outcome = 'pending')
  AND seq NOT IN (SELECT event_seq FROM fanouts)
ORDER BY seq LIMIT :limit
