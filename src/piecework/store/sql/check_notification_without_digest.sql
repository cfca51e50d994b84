-- Notifications that nobody will ever be told of.
SELECT DISTINCT n.digest_id AS subject, 'it has notifications, and is not there to tell them' AS message
FROM notifications n LEFT JOIN digests d ON d.digest_id = n.digest_id
WHERE d.digest_id IS NULL
LIMIT :limit
