"""The table `piecework_outbox` in the application's database. Imports SQLAlchemy: import this on first use only.

Rows of one transaction have one `due_at` and go in the order of `position`; what was relayed of it is always its
beginning, so that one statement forgets it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from piecework.services.outbox import TABLE
from piecework.services.schema import UtcDateTime

if TYPE_CHECKING:
    from piecework.services.session import Session

_MAKING = 7_265_081_093_117
"""Whom PostgreSQL lets make the table, one at a time."""

table = sa.Table(
    TABLE,
    sa.MetaData(),
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("transaction_id", sa.String(32), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("told", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("error", sa.Text),
    sa.Column("created_at", UtcDateTime(timezone=True), nullable=False),
    sa.Column("due_at", UtcDateTime(timezone=True), nullable=False),
    sa.Column("dead_at", UtcDateTime(timezone=True)),
)
_waits = table.c.dead_at.is_(None)
_index = sa.Index(
    f"{TABLE}_due",
    table.c.due_at,
    table.c.transaction_id,
    table.c.position,
    postgresql_where=_waits,
    sqlite_where=_waits,
)

INSERT = sa.insert(table)

DUE = (
    sa.select(table.c.id, table.c.transaction_id, table.c.position, table.c.kind, table.c.told, table.c.attempts)
    .where(_waits, table.c.due_at <= sa.bindparam("now"))
    .order_by(table.c.due_at, table.c.transaction_id, table.c.position)
    .limit(sa.bindparam("row_limit", type_=sa.BigInteger()))
)

NEXT = sa.select(sa.func.min(table.c.due_at).label("due_at")).where(_waits)

COUNTS = sa.select(sa.func.count().label("rows"), sa.func.count(table.c.dead_at).label("dead")).select_from(table)

FORGET = sa.delete(table).where(
    table.c.transaction_id == sa.bindparam("which"), table.c.position <= sa.bindparam("last"), _waits
)

REFUSED = (
    sa.update(table)
    .where(table.c.id == sa.bindparam("which"))
    .values(attempts=sa.bindparam("tried"), error=sa.bindparam("said"), dead_at=sa.bindparam("died"))
)

POSTPONE = (
    sa.update(table).where(table.c.transaction_id == sa.bindparam("which"), _waits).values(due_at=sa.bindparam("later"))
)

_SQLITE_TABLES = sa.table("sqlite_master", sa.column("type", sa.String), sa.column("name", sa.String))
_THERE: dict[str, sa.Select[Any]] = {
    "sqlite": sa.select(sa.literal(1).label("there"))
    .select_from(_SQLITE_TABLES)
    .where(_SQLITE_TABLES.c.type == "table", _SQLITE_TABLES.c.name == TABLE),
    "postgresql": sa.select(sa.literal(1).label("there")).where(sa.func.to_regclass(TABLE).is_not(None)),
}
_DIALECTS: dict[str, sa.Dialect] = {
    "sqlite": sqlite.dialect(),
    "postgresql": postgresql.dialect(),  # type: ignore[no-untyped-call]  # SQLAlchemy's
}


def there(dialect: str) -> sa.Select[Any]:
    """What answers a row where the table is there."""
    return _THERE[dialect]


def creating(dialect: str) -> list[sa.TextClause]:
    """What makes the table and its index, where they are not there."""
    made = (CreateTable(table, if_not_exists=True), CreateIndex(_index, if_not_exists=True))
    return [sa.text(str(each.compile(dialect=_DIALECTS[dialect]))) for each in made]


async def make_apart(session: Session) -> None:
    """Makes the table on a connection of its own, on PostgreSQL: no transaction of the user's waits for another's.

    Who may not make tables needs nothing to be made where the table is there.
    """
    if (await session.execute(there("postgresql"))).rows:
        return
    await session.begin()
    await session.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.literal(_MAKING, sa.BigInteger)).label("turn")))
    for statement in creating("postgresql"):
        await session.execute(statement)
    await session.commit()
