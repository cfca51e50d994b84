-- Nodes whose word still holds.
SELECT {columns} FROM nodes WHERE expires_at IS NULL OR expires_at > :now ORDER BY node_id
