-- Owners that no row of a node stands for, while there are nodes that would have taken over what they had. A node that
-- stops takes its row along, so where there is none at all everything is in order.
SELECT x.owner AS subject, 'has ' || x.held || ' runs and is no node: do the nodes that are there have their code?' AS message
FROM (SELECT owner, count(*) AS held FROM runs WHERE owner IS NOT NULL GROUP BY owner) x
LEFT JOIN nodes n ON n.node_id = x.owner
WHERE n.node_id IS NULL AND EXISTS (SELECT 1 FROM nodes)
LIMIT :limit
