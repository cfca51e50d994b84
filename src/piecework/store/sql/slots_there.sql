-- Which slots there are.
SELECT slot_key FROM slots WHERE slot_key IN (:slot_keys)
