from __future__ import annotations

import asyncio
import gc
from datetime import UTC, datetime
from decimal import Decimal

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from piecework.errors import (
    ClosedError,
    CrossWorkspaceError,
    DuplicateKeyError,
    InvalidStateError,
    NotFoundError,
    ValidationError,
)
from piecework.services.rows import Row


class Base(DeclarativeBase):
    """The models of these tests."""


class Event(Base):
    """A table that is declared before it is there."""

    __tablename__ = "happenings"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(default=lambda: "made")
    payload: Mapped[dict[str, object] | None] = mapped_column(sa.JSON(none_as_null=True), default=None)
    at: Mapped[datetime | None] = mapped_column(sa.DateTime, default=None)


async def names(query):
    """The names of the rows, in their order."""
    return [row.name for row in await query.all()]


async def fill(db, *users):
    """Inserts users by name."""
    for name in users:
        await db.users.insert(name=name)


@pytest.mark.covers("W111")
@pytest.mark.parametrize(
    ("condition", "found"),
    [
        ({"role": "admin"}, ["Ada"]),
        ({"role": None}, ["Cy"]),
        ({"role": ["admin", None]}, ["Ada", "Cy"]),
        ({"role": []}, []),
        ({"role__ne": "admin"}, ["Bob", "Cy"]),
        ({"role__ne": None}, ["Ada", "Bob"]),
        ({"role__ne": ["admin", None]}, ["Bob"]),
        ({"role__in": ("admin", "50%_off")}, ["Ada", "Bob"]),
        ({"role__in": set()}, []),
        ({"role__not_in": ["admin"]}, ["Bob", "Cy"]),
        ({"role__not_in": []}, ["Ada", "Bob", "Cy"]),
        ({"role__isnull": True}, ["Cy"]),
        ({"role__isnull": False}, ["Ada", "Bob"]),
        ({"age__lt": 40}, ["Bob"]),
        ({"age__le": 40}, ["Ada", "Bob"]),
        ({"age__gt": 30}, ["Ada"]),
        ({"age__ge": 30, "name__ne": "Ada"}, ["Bob"]),
        ({"role__startswith": "50%"}, ["Bob"]),
        ({"role__startswith": "5_"}, []),
        ({"role__endswith": "_off"}, ["Bob"]),
        ({"role__contains": "%_"}, ["Bob"]),
        ({"role__contains": "DMI"}, []),
        ({"role__contains": "*"}, []),
        ({"role__contains": ""}, ["Ada", "Bob"]),
    ],
)
async def test_what_a_condition_finds(db, condition, found):
    """An empty list is no row, None is NULL, `ne` is what equality leaves out, and no sign of a text is a wildcard."""
    await db.users.insert(name="Ada", role="admin", age=40)
    await db.users.insert(name="Bob", role="50%_off", age=30)
    await db.users.insert(name="Cy", role=None)
    assert await names(db.users.where(**condition)) == found
    assert await names(db.users.where(condition)) == found


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ({"nmae": "x"}, "no column of users 'nmae': did you mean 'name'"),
        ({"name__startwith": "x"}, "no suffix for column name 'startwith': did you mean 'startswith'"),
        ({"subscription__tier": "x"}, "no column or relation of users 'subscription': did you mean 'subscriptions'"),
        ({"subscriptions__teir": "x"}, "no column of subscriptions 'teir': did you mean 'tier'"),
        ({"subscriptions": "x"}, "is a relation"),
        ({"name__in": "Ada"}, "takes a list"),
        ({"name__isnull": 1}, "takes True or False"),
        ({"age__lt": None}, "compares with one value"),
        ({"name__contains": 7}, "takes a text"),
        ({"age__contains": "7"}, "no text column"),
        ({"name = '' or 1=1 --": "x"}, "no column of users"),
        ({"__class__": "x"}, "no column"),
    ],
)
async def test_a_condition_that_makes_no_sense_is_told(db, condition, said):
    """An unknown name is told with those that are near, a value that does not go with its suffix with what does."""
    with pytest.raises((NotFoundError, ValidationError), match=said):
        await db.users.where(**condition).all()


@pytest.mark.covers("W29")
async def test_everybody_but_one(db):
    """`where(id__ne=…, role="admin")` gives all admins but one."""
    for name, role in (("Ada", "admin"), ("Bob", "admin"), ("Cy", "reader")):
        await db.users.insert(name=name, role=role)
    assert await names(db.users.where(id__ne=1, role="admin")) == ["Bob"]


@pytest.mark.covers("W47")
@pytest.mark.parametrize(
    "condition", [{"subscriptions__tier__in": ["free", "paid"]}, {"subscriptions": {"tier": ["free", "paid"]}}]
)
async def test_a_row_matches_by_its_relations_once(db, condition):
    """A condition on a relation matches a row once, however many related rows there are."""
    await fill(db, "Ada", "Bob", "Cy")
    for user_id, tier in ((1, "free"), (1, "paid"), (2, "trial"), (3, "paid")):
        await db.subscriptions.insert(user_id=user_id, tier=tier)
    assert await names(db.users.where(**condition).paginate(1, 100)) == ["Ada", "Cy"]
    assert await db.users.where(**condition).update(role="payer") == 2


async def test_relations_go_both_ways(db):
    """A foreign key is a relation from either side; conditions of one `where` are about the same related row."""
    await fill(db, "Ada", "Bob")
    await db.subscriptions.insert(user_id=1, tier="free")
    await db.subscriptions.insert(user_id=1, tier="paid", ended=True)
    assert await db.subscriptions.where(user__name="Ada", tier="free").count() == 1
    assert await db.users.where(subscriptions__tier="free", subscriptions__ended=True).count() == 0
    assert await db.users.where(subscriptions__tier="free").where(subscriptions__ended=True).count() == 1
    assert await db.users.where(subscriptions__user__subscriptions__tier="paid").count() == 1


@pytest.mark.covers("W46")
async def test_a_loop_over_pages_ends_at_the_first_empty_one(db):
    """250 rows in pages of 100 are three pages, each row once, and then an empty one."""
    await asyncio.gather(*(db.users.insert(name=f"n{i}") for i in range(250)))
    sizes, seen, page = [], [], 1
    while rows := await db.users.paginate(page, 100).all():
        assert await db.users.paginate(page, 100).count() == len(rows)
        sizes.append(len(rows))
        seen += [row.id for row in rows]
        page += 1
    assert sizes == [100, 100, 50]
    assert seen == sorted(set(seen))


@pytest.mark.covers("W49")
async def test_pages_are_stable_while_rows_are_inserted(db):
    """Pages go by the key also where the order leaves ties, so rows that come meanwhile move none."""
    await fill(db, *"aaabb")
    first = await db.users.order_by("name").paginate(1, 2).all()
    await fill(db, "a", "z")
    second = await db.users.order_by("name").paginate(2, 2).all()
    assert [row.id for row in (*first, *second)] == [1, 2, 3, 6]
    assert [row.id for row in await db.users.paginate(2, 2).all()] == [3, 4]


@pytest.mark.parametrize(("page", "size"), [(0, 10), (-1, 10), (1, 0), (1, 1001), (2**62, 1000), ("1", 10), (True, 10)])
async def test_a_page_that_makes_no_sense_is_refused(db, page, size):
    """Pages are counted from 1, and a page has at most 1,000 rows."""
    with pytest.raises(ValidationError, match="1000 rows"):
        db.users.paginate(page, size)


async def test_rows_are_ordered_as_asked(db):
    """`order_by` takes several columns, `-` descends, NULL is the least, and the key decides ties."""
    for name, age in (("b", 1), ("a", None), ("c", 1), ("a", 2)):
        await db.users.insert(name=name, age=age)
    assert [row.id for row in await db.users.order_by("age", "-name").all()] == [2, 3, 1, 4]
    assert [row.id for row in await db.users.order_by("-age").all()] == [4, 1, 3, 2]
    with pytest.raises(NotFoundError, match="did you mean 'name'"):
        await db.users.order_by("-nmae").first()
    with pytest.raises(NotFoundError):
        await db.users.order_by("name; drop table users").first()


@pytest.mark.covers("W88")
@pytest.mark.parametrize("order", [(), ("age", "-name"), ("-age",)])
async def test_iterate_reads_everything_in_batches(db, order):
    """`iterate` gives what `all` gives, a batch at a time, whatever the order, and holds no connection in between."""
    for number in range(11):
        await db.users.insert(name=f"n{number % 3}", age=None if number % 4 == 0 else number % 2)
    query = db.users.order_by(*order)
    seen = []
    async for row in query.iterate(batch=3):
        assert db.status.leased == 0
        seen.append(row.id)
    assert seen == [row.id for row in await query.all()]


@pytest.mark.covers("W87")
async def test_rows_that_were_read_are_gone_when_they_are_dropped(db):
    """Reading on and on in one workspace keeps nothing of what was read before."""
    await asyncio.gather(*(db.users.insert(name=f"n{i}") for i in range(60)))
    most = number = 0
    async for _ in db.users.iterate(batch=10):
        number += 1
        if number % 20 == 0:
            gc.collect()
            most = max(most, sum(type(thing) is Row for thing in gc.get_objects()))
    assert 1 <= most <= 21


async def test_a_row_changes_where_it_came_from(db):
    """`row.update` changes the row and what is read from it, `row.delete` removes it; gone is gone."""
    await fill(db, "Ada", "Bob")
    row = await db.users.where(name="Ada").first()
    assert await row.update(role="admin") is row
    assert (row.role, await names(db.users.where(role="admin"))) == ("admin", ["Ada"])
    assert await row.delete() is True
    assert await row.delete() is False
    with pytest.raises(NotFoundError, match="not there any more"):
        await row.update(role="x")
    with pytest.raises(InvalidStateError, match="read it by its table"):
        await (await db.run("select 1 as one"))[0].delete()


@pytest.mark.covers("W102")
async def test_rows_and_queries_stay_in_their_workspace(users_app):
    """A row or a query of one workspace refuses to read or write in another; its attributes are there for everybody."""
    async with users_app.workspace() as ws:
        row, users = await ws.database.users.insert(name="Ada"), ws.database.users

        async def child(ws):
            assert row.name == "Ada"
            for use in (row.update(name="Eve"), row.delete(), users.count(), users.where(id=1).first()):
                with pytest.raises(CrossWorkspaceError, match=ws.id):
                    await use
            return await ws.database.users.where(id=row.id).first()

        assert (await ws.run_in_new_workspace(child)).name == "Ada"
        await row.update(name="Eva")
    with pytest.raises(ClosedError):
        await row.delete()


@pytest.mark.covers("W20", "W10")
async def test_the_end_of_a_child_leaves_the_callers_connection_alone(users_app):
    """Two workspaces never use one connection at once, and the end of one leaves the other's as it is."""
    async with users_app.workspace() as ws:
        mine = await ws.database.users.insert(name="Ada")

        async def child(ws):
            return [row.id async for row in ws.database.users.iterate()]

        assert await ws.run_in_new_workspace(child) == [mine.id]
        assert await ws.database.users.count() == 1


@pytest.mark.covers("W28")
async def test_a_missing_row_ends_a_child_quietly(users_app):
    """A child that looks for a row that is gone gets None, and does nothing."""

    async def child(ws, id):  # noqa: A002 - as the column
        row = await ws.database.users.where(id=id).first()
        return None if row is None else row.name

    assert await users_app.run_in_new_workspace(child, id=7) is None


@pytest.mark.covers("W90")
async def test_the_pool_tells_its_numbers(users_app):
    """How many connections there are, in use, free and waited for, is told."""
    async with users_app.workspace() as ws:
        await asyncio.gather(*(ws.database.users.count() for _ in range(20)))
        status = ws.database.status
    assert (status.size, status.leased, status.waiting) == (3, 0, 0)
    assert 1 <= status.idle <= 3
    assert status.leases >= 20


@pytest.mark.covers("W84", "W89")
async def test_more_workspaces_than_connections_all_finish(users_app):
    """However many workspaces use the database at once, each has a connection of its own while it needs one."""

    async def child(ws, number):
        async with ws.database.transaction() as transaction:
            lease = transaction.lease
            assert lease not in held
            held.add(lease)
            await ws.database.users.insert(name=str(number))
            held.discard(lease)
        return number

    held: set[object] = set()
    assert await users_app.map_in_workspaces(child, range(30), limit=30) == list(range(30))


async def test_a_thousand_open_workspaces_hold_no_connection(users_app):
    """An open workspace has a connection only while it needs one."""
    from contextlib import AsyncExitStack

    async with AsyncExitStack() as stack:
        for _ in range(1000):
            ws = await stack.enter_async_context(users_app.workspace())
            await ws.database.users.count()
        assert ws.database.status.leased == 0


async def test_declared_tables_win_over_those_that_are_read(db):
    """A model gives its table types and defaults; the table is reached by model and by name."""
    kinds = {"sqlite": "datetime", "postgresql": "timestamp"}
    key = "serial primary key" if db.access.database.dialect == "postgresql" else "integer primary key"
    at = kinds[db.access.database.dialect]
    await db.run(f"create table happenings (id {key}, name text not null, payload json, at {at})")
    when = datetime(2026, 1, 1, tzinfo=UTC)
    row = await db.table(Event).insert(payload={"a": [1]}, at=when)
    assert (row.name, row.payload, row.at) == ("made", {"a": [1]}, when)
    assert (await db.happenings.first()).payload == {"a": [1]}
    assert (await db.table(Event.__table__).first()).id == 1
    with pytest.raises(ValidationError, match="is no table"):
        db.table(7)


async def test_injection_finds_nothing_to_inject_into(db):
    """Keys, values, orders and names of tables are looked up or sent as values, never written into the text."""
    evil = "x'; drop table users; --"
    await db.users.insert(name=evil)
    assert await names(db.users.where(name=evil)) == [evil]
    assert await names(db.users.where(name__contains="'; drop")) == [evil]
    for use in (db.table(evil).all(), db.users.insert(**{evil: 1}), db.users.update(**{evil: 1})):
        with pytest.raises(NotFoundError):
            await use
    assert await db.users.count() == 1


async def test_a_taken_key_inside_a_transaction_leaves_it_as_it_is(db):
    """A statement that fails inside a transaction is undone by itself, and the transaction goes on, on both engines."""
    await db.users.insert(name="Ada", email="a")
    async with db.transaction():
        await db.users.insert(name="Bob")
        with pytest.raises(DuplicateKeyError):
            await db.users.insert(name="Eve", email="a")
        await db.users.insert(name="Cy")
    assert await names(db.users) == ["Ada", "Bob", "Cy"]


AMOUNTS = sa.Table(
    "amounts",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("price", sa.Numeric(10, 2)),
    sa.Column("rate", sa.Numeric(10, 2, asdecimal=False)),
    sa.Column("part", sa.Float),
    sa.Column("share", sa.Float(asdecimal=True)),
)


@pytest.mark.covers("N208")
@pytest.mark.parametrize("declared", [True, False])
async def test_numbers_come_back_as_they_went_in(db, declared):
    """A number comes back as the column says, as a Decimal or as a float, on both engines, declared or read."""
    await db.run(
        "create table amounts (id integer primary key, price numeric(10, 2), rate numeric(10, 2),"
        " part double precision, share double precision)"
    )
    price = Decimal("12.34")
    amounts = db.table(AMOUNTS) if declared else db.amounts
    inserted = await amounts.insert(id=1, price=price, rate=0.5, part=0.25, share=0.75)
    read = await amounts.where(price=price, part__in=[0.25]).first()
    assert inserted.as_dict() == read.as_dict() == {"id": 1, "price": price, "rate": 0.5, "part": 0.25, "share": 0.75}
    kinds = (Decimal, float, float, Decimal) if declared else (Decimal, Decimal, float, float)
    assert tuple(map(type, (read.price, read.rate, read.part, read.share))) == kinds


@pytest.mark.covers("N209")
async def test_a_value_that_does_not_fit_leaves_a_transaction_as_it_is(db):
    """A value that does not fit, as the first thing of a transaction or later, fails alone: the transaction goes on."""
    async with db.transaction():
        for use in (db.subscriptions.where(ended="perhaps").count(), db.users.insert(name="Ada", age=object())):
            with pytest.raises(ValidationError):
                await use
        await db.users.insert(name="Bob")
        with pytest.raises(ValidationError):
            await db.users.where(name="Bob").update(age=object())
    assert await names(db.users) == ["Bob"]


@pytest.mark.engines("postgres")
@pytest.mark.covers("N209")
async def test_a_nul_in_a_condition_leaves_a_transaction_as_it_is(db):
    """A text that PostgreSQL cannot compare with is refused before it breaks the transaction that asks."""
    async with db.transaction():
        for condition in ({"name": "A\0da"}, {"name__in": ["A\0da"]}, {"name__contains": "\0"}):
            with pytest.raises(ValidationError, match="NUL"):
                await db.users.where(condition).count()
        await db.users.insert(name="Bob")
    assert await names(db.users) == ["Bob"]


@pytest.mark.covers("W111")
async def test_a_condition_is_not_cut_to_its_column(db):
    """A value that is longer or finer than its column takes finds what it equals: nothing, not what is left of it."""
    await db.run("create table codes (id integer primary key, code varchar(3), price numeric(10, 2))")
    await db.codes.insert(id=1, code="abc", price=Decimal("2.00"))
    for condition in (
        {"code": "abcdef"},
        {"code__in": ["abcdef"]},
        {"price": Decimal("1.999")},
        {"price__in": [Decimal("1.999")]},
        {"price__gt": Decimal("1e9")},
    ):
        assert await db.codes.where(condition).count() == 0
    assert await db.codes.where(code__in=["abc"], price__gt=Decimal("1.999"), price__lt=Decimal("1e9")).count() == 1


@pytest.mark.engines("postgres")
async def test_a_list_for_a_column_of_arrays_is_told(db):
    """A list is any of its values, also for a column of arrays, where that cannot be asked: it is refused."""
    await db.run("create table tagged (id serial primary key, tags text[])")
    assert (await db.tagged.insert(tags=["a", "b"])).tags == ["a", "b"]
    with pytest.raises(ValidationError, match="column of arrays"):
        await db.tagged.where(tags=["a", "b"]).all()


@pytest.mark.covers("N210")
@pytest.mark.parametrize("cancels", [1, 2])
async def test_a_statement_whose_caller_goes_is_stopped(db, cancels):
    """Cancelling a caller stops its statement, gives the connection back, and nobody complains of what became of it."""
    complaints = []
    assert await db.users.count() == 0
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    endless = "with recursive a (n) as (select 1 union all select n from a) select count(*) from a"
    task = asyncio.ensure_future(db.run(endless))
    while not db.status.leased:
        await asyncio.sleep(0)
    for _ in range(cancels):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    while db.status.leased:
        await asyncio.sleep(0)
    assert await db.users.count() == 0
    del task
    gc.collect()
    assert complaints == []
