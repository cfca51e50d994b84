-- Events that nobody needs any more.
SELECT seq FROM events WHERE accepted_at < :before AND event_id IS NULL
  AND seq NOT IN (SELECT event_seq FROM runs WHERE ended_at IS NULL AND event_seq IS NOT NULL)
  AND seq NOT IN (SELECT event_seq FROM deliveries WHERE outcome = 'pending')
  AND seq NOT IN (SELECT event_seq FROM fanouts)
ORDER BY seq LIMIT :limit
