-- Spaces that are looked at later than the first of their runs is due, or never.
SELECT x.space AS subject,
       x.waiting || ' runs due from ' || x.earliest || ' on, the space '
       || CASE WHEN s.space IS NULL THEN 'is missing' WHEN s.next_due IS NULL THEN 'is never due' ELSE 'from ' || s.next_due END AS message
FROM (
    SELECT space, min(due_at) AS earliest, count(*) AS waiting
    FROM runs WHERE due_at IS NOT NULL AND owner IS NULL GROUP BY space
) x LEFT JOIN spaces s ON s.space = x.space
WHERE s.next_due IS NULL OR s.next_due > x.earliest
LIMIT :limit
