-- Removes what digests have told.
DELETE FROM notifications WHERE digest_id IN (:digest_ids)
