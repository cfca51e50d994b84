-- Pieces that people want to run, and whose next update will never come.
SELECT p.space || '/' || p.piece_id AS subject,
       p.observed || CASE WHEN p.run_id IS NULL THEN ', no update of it is to come'
                          WHEN r.run_id IS NULL THEN ', its next update ' || p.run_id || ' is gone'
                          ELSE ', its next update ' || p.run_id || ' has ended' END AS message
FROM pieces p LEFT JOIN runs r ON r.run_id = p.run_id
WHERE p.desired = 'enabled' AND p.observed NOT IN ('broken', 'waiting')
  AND (r.run_id IS NULL OR r.status IN ('completed', 'failed', 'aborted'))
LIMIT :limit
