-- The runs that an owner has.
SELECT {columns} FROM runs WHERE owner = :owner
