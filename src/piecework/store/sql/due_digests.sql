-- Digests that are due, the longest due first, behind one that was looked at.
SELECT {columns} FROM digests
WHERE due_at <= :now AND (due_at, digest_id) > (:after, :after_id)
ORDER BY due_at, digest_id LIMIT :limit
