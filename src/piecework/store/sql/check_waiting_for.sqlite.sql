-- Paused runs that tell other events than they wait for. What they tell is a JSON list of types.
SELECT subject, 'says that it waits for ' || coalesce(told, 'nothing') || ', it waits for ' || coalesce(awaited, '[]') AS message
FROM (
    SELECT r.run_id AS subject, r.waiting_for AS told,
           (SELECT json_group_array(event_type) FROM (
               SELECT DISTINCT event_type FROM waits w WHERE w.run_id = r.run_id ORDER BY event_type)) AS awaited,
           (SELECT json_group_array(value) FROM (
               SELECT DISTINCT value FROM json_each(CASE WHEN json_valid(r.waiting_for) THEN r.waiting_for ELSE '[]' END)
               ORDER BY value)) AS said
    FROM runs r WHERE r.status = 'paused' AND r.ended_at IS NULL
)
WHERE said <> awaited OR NOT json_valid(coalesce(told, '[]'))
LIMIT :limit
