-- Forgets all nodes but some.
DELETE FROM nodes WHERE node_id NOT IN (:node_ids)
