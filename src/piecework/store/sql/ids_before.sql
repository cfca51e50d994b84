-- Events whose ids are no longer looked at for duplicates.
SELECT seq FROM events WHERE event_id IS NOT NULL AND accepted_at < :before ORDER BY seq LIMIT :limit
