-- How many runs there are of each kind in each status.
SELECT kind, status, count(*) AS runs FROM runs GROUP BY kind, status ORDER BY kind, status
