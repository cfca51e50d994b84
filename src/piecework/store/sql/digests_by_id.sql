-- Digests as they stand.
SELECT {columns} FROM digests WHERE digest_id IN (:digest_ids)
