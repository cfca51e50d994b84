-- Nodes that are gone and have nothing any more.
SELECT node_id FROM nodes WHERE expires_at IS NOT NULL AND expires_at < :before
  AND node_id NOT IN (SELECT owner FROM runs WHERE owner IS NOT NULL) LIMIT :limit
