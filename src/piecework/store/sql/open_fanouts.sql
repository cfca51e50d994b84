-- Events that still fan out.
SELECT {columns} FROM fanouts ORDER BY event_seq LIMIT :limit
