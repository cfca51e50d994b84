-- The nodes that have said something of themselves.
SELECT {columns} FROM nodes ORDER BY node_id
