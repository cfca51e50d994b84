-- Slots whose counts are not those of their runs.
SELECT s.slot_key AS subject,
       'says ' || s.live || ' live, ' || s.queued || ' queued, ' || s.closing || ' closing, ' || s.paused || ' paused; there are '
       || coalesce(c.live, 0) || ', ' || coalesce(c.queued, 0) || ', ' || coalesce(c.closing, 0) || ', '
       || coalesce(c.paused, 0) AS message
FROM slots s LEFT JOIN (
    SELECT slot_key,
           sum(CASE WHEN status IN ('running', 'paused') OR (status = 'queued' AND due_at IS NOT NULL)
                OR (ended_at IS NOT NULL AND telling = 1) THEN 1 ELSE 0 END) AS live,
           sum(CASE WHEN status = 'queued' AND due_at IS NULL THEN 1 ELSE 0 END) AS queued,
           sum(CASE WHEN status IN ('completed', 'failed', 'aborted') AND telling <> 1 THEN 1 ELSE 0 END) AS closing,
           sum(CASE WHEN status = 'paused' THEN 1 ELSE 0 END) AS paused
    FROM runs WHERE slot_key IS NOT NULL AND NOT (cleaned = 1 AND status IN ('completed', 'failed', 'aborted'))
    GROUP BY slot_key
) c ON c.slot_key = s.slot_key
WHERE s.live <> coalesce(c.live, 0) OR s.queued <> coalesce(c.queued, 0)
   OR s.closing <> coalesce(c.closing, 0) OR s.paused <> coalesce(c.paused, 0)
LIMIT :limit
