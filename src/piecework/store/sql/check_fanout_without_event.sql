-- Events on their way to many waiting runs, and gone.
SELECT CAST(f.event_seq AS TEXT) AS subject, 'it is still on its way to runs that wait for it, and it is gone' AS message
FROM fanouts f LEFT JOIN events e ON e.seq = f.event_seq
WHERE e.seq IS NULL
LIMIT :limit
