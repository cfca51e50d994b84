-- The runs of an owner that have been told to end.
SELECT {columns} FROM runs WHERE owner = :owner AND abort_reason IS NOT NULL AND ended_at IS NULL
