-- Paused runs that tell other events than they wait for. What they tell is a JSON list of types.
SELECT subject, 'says that it waits for ' || coalesce(told, 'nothing') || ', it waits for ' || awaited::text AS message
FROM (
    SELECT r.run_id AS subject, r.waiting_for AS told,
           (SELECT coalesce(jsonb_agg(DISTINCT event_type ORDER BY event_type), '[]'::jsonb)
            FROM waits w WHERE w.run_id = r.run_id) AS awaited,
           (SELECT coalesce(jsonb_agg(DISTINCT value ORDER BY value), '[]'::jsonb) FROM (
               SELECT value COLLATE "C" AS value FROM jsonb_array_elements_text(
                   CASE WHEN r.waiting_for LIKE '[%]' THEN r.waiting_for::jsonb ELSE '[]'::jsonb END
               ) AS value) AS told_types) AS said
    FROM runs r WHERE r.status = 'paused' AND r.ended_at IS NULL
) AS compared
WHERE said <> awaited OR told NOT LIKE '[%]'
LIMIT :limit
