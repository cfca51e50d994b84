-- Forgets nodes.
DELETE FROM nodes WHERE node_id IN (:node_ids)
