"""The right to publish inside one's own transactions, and nothing else, given to a role of PostgreSQL's."""

from __future__ import annotations

import asyncpg

from piecework.errors import NotFoundError, StoreError
from piecework.store.postgres_link import Address, Link, translate
from piecework.store.postgres_looking import hang_up

_INBOX = "event_inbox"
_MAY = "SELECT has_schema_privilege($1, $2, 'USAGE') AND has_table_privilege($1, $3, 'INSERT')"


async def grant_publishing(url: str, role: str) -> None:
    """Allows a role to insert into the store's inbox.

    The rows' numbers are the table's own (an identity column), so the role needs no right on their sequence.

    Args:
        url: `postgresql://…[?schema=NAME]`, of a role that owns the store.
        role: Whose transactions may publish; its name as PostgreSQL keeps it.

    Raises:
        NotFoundError: There is no such role.
        StoreError: The role of the address may not give this right.
        StoreUnavailableError: The server cannot be reached.
    """
    address = Address.parse(url)
    place = address.place
    connection = await Link(address).first()
    try:
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", role):
            raise NotFoundError(f"there is no role {role!r} at {place.url}: CREATE ROLE makes one", role=role)
        table = f"{place.quoted}.{_INBOX}"
        to = '"' + role.replace('"', '""') + '"'
        async with connection.transaction():
            await connection.execute(f"GRANT USAGE ON SCHEMA {place.quoted} TO {to}")
            await connection.execute(f"GRANT INSERT ON {table} TO {to}")
            # Who holds no right to give may be warned only, not refused.
            if not await connection.fetchval(_MAY, role, place.schema, table):
                raise _refused(place.url, role)
    except asyncpg.InsufficientPrivilegeError as error:
        raise _refused(place.url, role) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise translate(error, place.url) from error
    finally:
        await hang_up(connection)


def _refused(url: str, role: str) -> StoreError:
    return StoreError(
        f"the role of {url} may not let {role!r} publish: use the role that owns the store", url=url, role=role
    )
