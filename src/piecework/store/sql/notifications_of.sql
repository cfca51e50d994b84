-- What a digest is to tell, in the order in which it was told first: one of each that are alike, and how many there are.
SELECT n.subject, n.body, told.times FROM (
    SELECT min(seq) AS seq, count(*) AS times FROM notifications WHERE digest_id = :digest_id GROUP BY alike
) AS told
JOIN notifications AS n ON n.seq = told.seq
ORDER BY told.seq LIMIT :limit
