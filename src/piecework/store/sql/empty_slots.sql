-- Slots that no unended run is in.
SELECT slot_key FROM slots WHERE live = 0 AND queued = 0 AND closing = 0 LIMIT :limit
