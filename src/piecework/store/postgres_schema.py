"""Whose schema it is in a PostgreSQL database, which version it has, and how it gets the newest.

A schema that is not ours is never touched. Processes that open a store at the same time wait for the one that migrates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from piecework.errors import NotFoundError, SchemaVersionError, StoreError, StoreFormatError
from piecework.store.migrate import migrations, postgres_words, statements_of

if TYPE_CHECKING:
    import asyncpg

MARK = "piecework"
"""What stands in `schema_version.mark` of a schema that is ours."""

_DDL_LOCK_SECONDS = 60

_LOOK = """
SELECT n.oid AS schema, current_user AS role, current_database() AS database,
       has_database_privilege(current_database(), 'CREATE') AS may_make,
       has_schema_privilege(n.oid, 'USAGE') AS may_use,
       has_schema_privilege(n.oid, 'CREATE') AS may_create,
       EXISTS (SELECT FROM pg_class WHERE relnamespace = n.oid)
           OR EXISTS (SELECT FROM pg_proc WHERE pronamespace = n.oid)
           OR EXISTS (SELECT FROM pg_type WHERE typnamespace = n.oid) AS filled,
       (SELECT count(*) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        WHERE c.relnamespace = n.oid AND c.relname = 'schema_version' AND c.relkind = 'r'
          AND a.attname IN ('version', 'mark') AND NOT a.attisdropped) = 2 AS versioned,
       ARRAY(SELECT relname::text FROM pg_class
             WHERE relnamespace = n.oid AND relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY relname LIMIT 3) AS tables
FROM (SELECT 1) AS one LEFT JOIN pg_namespace n ON n.nspname = $1
"""

_LACKING = """
SELECT c.relname::text || ' (' || p.name || ')' FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p (name)
WHERE n.nspname = $1 AND c.relkind = 'r' AND NOT has_table_privilege(c.oid, p.name)
  AND (c.relname <> 'schema_version' OR p.name = 'SELECT')
UNION ALL
SELECT c.relname::text || ' (USAGE)' FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND CASE c.relkind WHEN 'S' THEN NOT has_sequence_privilege(c.oid, 'USAGE') ELSE FALSE END
ORDER BY 1 LIMIT 3
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a store is.

    Attributes:
        schema: The name of its schema, a plain word.
        url: The address to be shown in errors.
    """

    schema: str
    url: str

    @property
    def quoted(self) -> str:
        """The schema's name as it is written in a statement."""
        return f'"{self.schema}"'


async def inspect_postgres(connection: asyncpg.Connection[Any], place: Place) -> int:
    """Tells the schema's version, 0 where there is none yet, without writing.

    Raises:
        StoreFormatError: The schema is somebody else's.
        SchemaVersionError: It is newer than this version of Piecework.
        StoreError: The role may not make or use it.
    """
    look = await connection.fetchrow(_LOOK, place.schema)
    if look is None:  # the query always has one row
        raise StoreError(f"{place.url} does not tell what is in it")
    who = f"role {look['role']!r}"
    if look["schema"] is None:
        if not look["may_make"]:
            raise StoreError(
                f"{who} may not create the schema {place.schema!r} in database {look['database']!r} ({place.url}): "
                f"GRANT CREATE ON DATABASE to it, or let an administrator run "
                f"CREATE SCHEMA {place.quoted} AUTHORIZATION for it",
                role=look["role"],
                schema=place.schema,
            )
        return 0
    if not look["filled"] and not (look["may_use"] and look["may_create"]):
        raise StoreError(
            f"{who} may not create tables in the schema {place.schema!r} ({place.url}): "
            f"GRANT USAGE, CREATE ON SCHEMA {place.quoted} to it",
            role=look["role"],
            schema=place.schema,
        )
    if not look["filled"]:
        return 0
    if not look["versioned"]:
        raise _not_ours(place, look["tables"])
    return await _version(connection, place, look)


async def _version(connection: asyncpg.Connection[Any], place: Place, look: asyncpg.Record) -> int:
    table = f"{place.quoted}.schema_version"
    lacking = f"USAGE on schema {place.schema!r}" if not look["may_use"] else None
    if lacking is None and not await connection.fetchval("SELECT has_table_privilege($1, 'SELECT')", table):
        lacking = f"SELECT on {table}"
    if lacking is not None:
        raise StoreError(
            f"role {look['role']!r} lacks {lacking} ({place.url}): grant it, or use the role that made the store",
            role=look["role"],
            schema=place.schema,
        )
    rows = await connection.fetch(f"SELECT mark::text, version::bigint FROM {table}")  # noqa: S608 - a plain word, checked
    if [row["mark"] for row in rows] != [MARK]:
        raise _not_ours(place, look["tables"])
    found: int = rows[0]["version"]
    known = migrations()[-1][0]
    if found > known:
        raise SchemaVersionError(
            f"{place.url} has schema version {found}, this Piecework knows up to {known}: upgrade Piecework",
            path=place.url,
            found=found,
            known=known,
        )
    return found


def _not_ours(place: Place, tables: list[str]) -> StoreFormatError:
    names = ", ".join(tables) or "none"
    return StoreFormatError(
        f"the schema {place.schema!r} of {place.url} is something else's (its tables: {names}); it was left alone. "
        "Name another one: ?schema=NAME",
        path=place.url,
        schema=place.schema,
    )


async def migrate_postgres(connection: asyncpg.Connection[Any], place: Place, *, create: bool = True) -> int:
    """Brings the schema to the newest version, one transaction a migration, and answers that version.

    Args:
        connection: To the database.
        place: Which schema.
        create: Whether one that is not there is made.

    Raises:
        NotFoundError: It is not there, and is not to be made.
        StoreFormatError: The schema is somebody else's.
        SchemaVersionError: It is newer than this version of Piecework.
        StoreError: The role may not do it.
        asyncpg.PostgresError: The server refused.
    """
    newest = migrations()[-1][0]
    version = await inspect_postgres(connection, place)
    if version == 0 and not create:
        raise NotFoundError(
            f"there is no store at {place.url} (no schema {place.schema!r}): check the address; a node "
            "(`piecework serve`) or `piecework store migrate` makes one",
            schema=place.schema,
        )
    while version < newest:
        async with connection.transaction():
            # However long it takes: whoever migrates now does it for us too.
            await connection.execute("SET LOCAL lock_timeout = 0")
            await connection.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"piecework {place.schema}"
            )
            await connection.execute(f"SET LOCAL lock_timeout = '{_DDL_LOCK_SECONDS}s'")
            version = await inspect_postgres(connection, place)
            if version < newest:
                version = await _apply(connection, place, version)
    lacking = [row[0] for row in await connection.fetch(_LACKING, place.schema)]
    if lacking:
        role = await connection.fetchval("SELECT current_user")
        raise StoreError(
            f"role {role!r} lacks rights in schema {place.schema!r} ({place.url}): {', '.join(lacking)}. "
            f"Grant them, or use the role that made the store",
            role=role,
            schema=place.schema,
        )
    return version


async def _apply(connection: asyncpg.Connection[Any], place: Place, version: int) -> int:
    if version == 0:
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", place.schema):
            await connection.execute(f"CREATE SCHEMA {place.quoted}")
        await connection.execute(
            f'CREATE TABLE {place.quoted}.schema_version (mark text COLLATE "C" PRIMARY KEY, version bigint NOT NULL)'
        )
    number, text = next((number, text) for number, text in migrations() if number > version)
    for statement in statements_of(postgres_words(text)):
        await connection.execute(statement)
    await connection.execute(
        f"INSERT INTO {place.quoted}.schema_version VALUES ($1, $2) ON CONFLICT (mark) DO UPDATE SET version = $2",  # noqa: S608 - a plain word, checked
        MARK,
        number,
    )
    return number
