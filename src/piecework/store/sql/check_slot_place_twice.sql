-- Queues in which two runs have one place: which of them is first is left to chance.
SELECT slot_key AS subject, count(*) || ' queued runs have place ' || place AS message
FROM runs WHERE status = 'queued' AND due_at IS NULL AND slot_key IS NOT NULL AND place IS NOT NULL
GROUP BY slot_key, place HAVING count(*) > 1
LIMIT :limit
