# ruff: noqa: PT012 - what raises is the end of a transaction, which has a body
"""What is made inside a transaction of the application's goes to the store with its commit, and never without it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from piecework.cli.asking import Where
from piecework.cli.doctor import _outbox
from piecework.errors import (
    CrossWorkspaceError,
    DatabaseError,
    InvalidStateError,
    NotFoundError,
    StoreUnavailableError,
    TransactionClosedError,
    ValidationError,
)
from piecework.services import outbox, outbox_rows
from piecework.services.database import Database
from piecework.services.outbox import WAITS_SECONDS, after_refusal
from piecework.services.relay import Relay
from piecework.telemetry import signals

from .apps import calls
from .flows import flow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from piecework import App

pytestmark = pytest.mark.engines("sqlite")  # the store's; what is said of it stands on both

LIMIT = 20


class Oops(Exception):  # noqa: N818 - what a user's code raises
    """What goes wrong in these tests."""


@pytest.fixture(params=["sqlite", "postgres"])
def app_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an application's database of the test's own, of either kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'app.db'}"
        return
    databases = request.getfixturevalue("postgres_databases")
    url = databases.fresh()
    yield url
    databases.drop(url)


@pytest.fixture
def heard() -> list[Any]:
    """What the workflow and the job of the app were given, in order."""
    return []


@pytest.fixture
def make(make_app: Callable[..., App], app_database: str, heard: list[Any]) -> Callable[..., App]:
    """Makes apps, one after the other the same one, with a job and a workflow that note what they are given."""

    async def hear(ctx: Any) -> None:
        heard.append(ctx.event.payload["n"])

    def make_one(**options: Any) -> App:
        app = make_app(flow(hear, on="told"), database=app_database, **options)

        @app.job("note")
        async def note(ws: Any, n: int = 0) -> int:
            heard.append(n)
            return n

        app.note = note  # type: ignore[attr-defined]  # for the tests
        return app

    return make_one


@pytest.fixture
async def shop(make: Callable[..., App]) -> AsyncIterator[App]:
    """An open app with orders in its database."""
    async with make() as app:
        await with_orders(app)
        yield app


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The signals of the outbox, in order."""
    found: list[tuple[str, dict[str, Any]]] = []
    emit = signals.emit

    def note(signal: str, *, level: str = "info", **fields: Any) -> None:
        if signal.startswith("outbox."):
            found.append((signal, fields))
        emit(signal, level=level, **fields)

    monkeypatch.setattr(signals, "emit", note)
    return found


async def with_orders(app: App) -> None:
    async with app.workspace() as ws:
        await ws.database.run("create table orders (id integer primary key, name text)")


async def runs(app: App, **which: Any) -> list[Any]:
    return sorted(await app.runtime.list_all_runs(**which), key=lambda run: run.run_id)


async def rows(app: App) -> list[Any]:
    """What stands in the outbox, in order."""
    async with app.workspace() as ws:
        found: list[Any] = await ws.database.piecework_outbox.order_by("due_at", "transaction_id", "position").all()
        return found


async def until(there: Callable[[], Any]) -> None:
    """Waits until something is there."""
    async with asyncio.timeout(LIMIT):
        while not there():
            await asyncio.sleep(0)


async def until_empty(app: App) -> None:
    """Waits until all rows are gone: they are forgotten behind the commit."""
    async with asyncio.timeout(LIMIT):
        while await rows(app):
            await asyncio.sleep(0)


def left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets whoever commits relay nothing, as one that is killed then."""

    async def nothing(self: Relay, intents: Any) -> None:
        """Killed."""

    monkeypatch.setattr(Relay, "hand_over", nothing)


async def one_of_each(ws: Any) -> tuple[Any, ...]:
    """An event, a job, a mail and a notification; their ids."""
    receipt = await ws.publish("told", {"n": 1})
    run_id = await ws.enqueue_job("note", n=2)
    mail = await ws.send_mail(to="ada@example.org", subject="Order", text="Thanks")
    notify = await ws.require("notify")
    digest = await notify({"email": "ada@example.org"}, "An order", force=True)
    return receipt.event_id, run_id, mail, digest


# -- the promise -------------------------------------------------------------------------------------------------


@pytest.mark.covers("N180")
@pytest.mark.engines("sqlite", "postgres")
async def test_all_goes_with_the_commit(shop, heard):
    """Events, jobs, mails and notifications are there when the transaction has committed, once each."""
    async with shop.workspace() as ws:
        async with ws.database.transaction():
            await ws.database.orders.insert(id=1, name="Ada")
            _, run_id, mail, _ = await one_of_each(ws)
            assert await runs(shop) == []
        for each in (run_id, mail):
            assert (await shop.runtime.wait(each, timeout_seconds=LIMIT)).ok
        await until(lambda: len(shop.mail.messages) == 2 and len(heard) == 2)
    assert sorted(heard) == [1, 2]
    await until_empty(shop)


@pytest.mark.covers("N180")
async def test_all_vanishes_with_the_rollback(shop):
    """What was made in a transaction that is rolled back is never seen, nor is its row."""
    async with shop.workspace() as ws:
        with pytest.raises(Oops):
            async with ws.database.transaction():
                await one_of_each(ws)
                raise Oops
        async with ws.database.transaction():
            await ws.enqueue_job("note", n=3)
    await until_empty(shop)
    assert [run.workflow_id for run in await runs(shop)] == ["note"]
    assert shop.mail.messages == []


@pytest.mark.covers("N180")
async def test_a_savepoint_takes_its_own_along(shop):
    """What was made in a savepoint that is undone vanishes, what was made around it stays."""
    async with shop.workspace() as ws, ws.database.transaction():
        kept = [await ws.enqueue_job("note", n=1)]
        with pytest.raises(Oops):
            async with ws.database.transaction():
                await one_of_each(ws)
                raise Oops
        async with ws.database.transaction():
            kept.append(await ws.enqueue_job("note", n=2))
        assert [row.position for row in await ws.database.piecework_outbox.order_by("position").all()] == [0, 5]
    await until_empty(shop)
    assert [run.run_id for run in await runs(shop)] == sorted(kept)


@pytest.mark.covers("N181")
async def test_without_a_transaction_there_is_no_outbox(shop, app_database):
    """Where no transaction is open the store is told at once, and there is no table."""
    async with shop.workspace() as ws:
        await one_of_each(ws)
        assert len(await runs(shop, workflow="note")) == 1
        with pytest.raises(NotFoundError, match="piecework_outbox"):
            await ws.database.piecework_outbox.count()


@pytest.mark.covers("N180")
async def test_a_client_hands_over_to_its_node(make, heard):
    """What is made inside a transaction of a client's is with the node when that has committed."""
    async with make() as node:
        await with_orders(node)
        async with make().open(role="client") as client, client.workspace() as ws:
            async with ws.database.transaction():
                run_id = await ws.enqueue_job("note", n=3)
                with pytest.raises(InvalidStateError, match="begins when"):
                    await client.runtime.wait(run_id)
            assert await client.job_value(run_id) == 3
            await until_empty(client)
    assert heard == [3]


@pytest.mark.covers("N180")
async def test_a_process_of_its_own_hands_over_too(store, tmp_path):
    """What a function in a process of its own makes inside a transaction goes with that commit too."""
    told: list[Any] = []
    calls.app.configure(store=store, database=f"sqlite:///{tmp_path / 'calls.db'}")
    calls.app.bus.subscribe("ordered", told.append)
    async with calls.app as app:
        event_id = await app.workspace(isolation="process").run(calls.order, 7)
        assert [(event.id, event.payload) for event in told] == [(event_id, {"n": 7})]
        assert await app.runtime.list_all_runs() == []
        await until_empty(app)


@pytest.mark.covers("N182")
async def test_an_id_is_the_runs_from_the_commit_on(shop):
    """What enqueue answers inside a transaction is the run's id from the commit on."""
    async with shop.workspace() as ws:
        async with ws.database.transaction():
            run_id = await shop.note.enqueue(7)
        assert await shop.job_value(run_id) == 7


@pytest.mark.covers("N182")
async def test_nobody_waits_for_a_job_inside(shop):
    """To wait for a job inside the transaction that it begins with the commit of is refused, and nothing is queued."""
    async with shop.workspace() as ws:
        async with ws.database.transaction():
            for call in (lambda: ws.run_background_job("note"), lambda: shop.note.run(n=1)):
                with pytest.raises(InvalidStateError, match="wait behind"):
                    await call()
            run_id = await ws.enqueue_job("note", n=5)
            for wait in (shop.job_value, shop.runtime.wait):
                with pytest.raises(InvalidStateError, match=f"{run_id} begins when"):
                    await wait(run_id)
        assert await shop.job_value(run_id) == 5
        assert len(await runs(shop)) == 1


@pytest.mark.covers("N183")
async def test_what_is_not_acceptable_is_refused_inside(shop):
    """An unknown job, wrong arguments and an event that is no JSON are refused where they are asked for."""
    async with shop.workspace() as ws, ws.database.transaction():
        with pytest.raises(NotFoundError, match="did you mean 'note'"):
            await ws.enqueue_job("noet")
        with pytest.raises(ValidationError):
            await ws.enqueue_job("note", n="many")
        for refused in ({"n": object()}, {"__n": 1}):
            with pytest.raises(ValidationError):
                await ws.publish("told", refused)
        with pytest.raises(ValidationError):
            await shop.note.options(delay_seconds=-1).enqueue()
    assert await runs(shop) == []


@pytest.mark.covers("N184")
async def test_the_order_of_a_transaction_is_kept(make, heard, monkeypatch):
    """The events of a transaction are accepted in the order of publishing, also by nodes that start later, at once."""
    left_behind(monkeypatch)
    async with make() as app:
        await with_orders(app)
        async with app.workspace() as ws, ws.database.transaction():
            ids = [(await ws.publish("told", {"n": n})).event_id for n in range(150)]
    accepted: list[str] = []
    app = make()
    app.bus.subscribe("told", lambda event: accepted.append(event.id))
    async with app:
        await until_empty(app)
    assert accepted == ids


@pytest.mark.covers("N185")
async def test_a_node_relays_what_a_killed_one_left(make, heard, monkeypatch):
    """What was committed by a process that died before it could relay is relayed by the next node, at its start."""
    with monkeypatch.context() as patch:
        left_behind(patch)
        async with make() as app:
            await with_orders(app)
            async with app.workspace() as ws, ws.database.transaction():
                run_id = await ws.enqueue_job("note", n=4)
            assert [row.kind for row in await rows(app)] == ["job"]
            with pytest.raises(NotFoundError):
                await app.runtime.get(run_id)
    async with make() as app:
        await until_empty(app)
        assert await app.job_value(run_id) == 4
    assert heard == [4]


@pytest.mark.covers("N185")
async def test_what_was_relayed_and_not_forgotten_is_once_all_the_same(make, heard, monkeypatch):
    """A row that was relayed and is still there is relayed again, and changes nothing."""

    async def nothing(self: Relay, database: Database) -> None:
        self._relayed.clear()

    with monkeypatch.context() as patch:
        patch.setattr(Relay, "_forget", nothing)
        async with make() as app:
            await with_orders(app)
            async with app.workspace() as ws:
                async with ws.database.transaction():
                    await one_of_each(ws)
                await until(lambda: len(app.mail.messages) == 2 and len(heard) == 2)
            assert len(await rows(app)) == 4
            made = len(await runs(app))
    before = heard.copy()
    async with make() as app:
        await until_empty(app)
        assert len(await runs(app)) == made == 5
    assert (sorted(before), heard) == ([1, 2], before)


@pytest.mark.covers("N185")
async def test_nodes_that_relay_at_once_relay_once(make, heard, monkeypatch):
    """Whoever relays beside another changes nothing: each row is accepted once, in order."""
    left_behind(monkeypatch)
    async with make() as app:
        await with_orders(app)
        async with app.workspace() as ws:
            for n in range(20):
                async with ws.database.transaction():
                    await ws.publish("told", {"n": n})
                    await ws.enqueue_job("note", n=100 + n)
        relays = [Relay(app, app._database_there, app.clock, sweep_seconds=30) for _ in range(3)]
        assert await asyncio.gather(*(relay.sweep() for relay in relays)) == [None] * 3
        await until(lambda: len(heard) == 40)
        assert await rows(app) == []
    assert sorted(heard) == [*range(20), *range(100, 120)]


@pytest.mark.covers("N185")
@pytest.mark.engines("postgres")
async def test_two_nodes_that_start_at_once_relay_once(make, heard, monkeypatch):
    """Two nodes that find the same rows at their start accept each once."""
    with monkeypatch.context() as patch:
        left_behind(patch)
        async with make() as app:
            await with_orders(app)
            async with app.workspace() as ws:
                for n in range(30):
                    async with ws.database.transaction():
                        await ws.publish("told", {"n": n})
                        await ws.enqueue_job("note", n=100 + n)
    async with make() as one, make() as other:
        await until_empty(other)
        assert len(await runs(one)) == 60
        await until(lambda: len(heard) == 60)
    assert sorted(heard) == [*range(30), *range(100, 130)]


@pytest.mark.covers("N186")
async def test_a_store_that_fails_costs_nothing_but_time(make, heard, told, monkeypatch):
    """While the store cannot be written the commit holds, a signal tells it, and a later look relays uncharged."""
    async with make() as app:
        await with_orders(app)
        enqueue, failing = app.enqueue, True

        async def fails(*args: Any, **options: Any) -> str:
            if failing:
                raise StoreUnavailableError("no answer: see that the server runs")
            return await enqueue(*args, **options)

        monkeypatch.setattr(app, "enqueue", fails)
        async with app.workspace() as ws, ws.database.transaction():
            await ws.enqueue_job("note", n=1)
        (signal, fields), *_ = told
        assert (signal, fields["rows"], fields["error"]["code"]) == (signals.OUTBOX_LEFT, 1, "STORE_UNAVAILABLE")
        await until(lambda: signals.OUTBOX_TROUBLE in dict(told))
        assert [row.attempts for row in await rows(app)] == [0]
        failing = False
        await until_empty(app)
        await until(lambda: heard)


@pytest.mark.covers("N187")
async def test_a_row_that_is_refused_is_kept_with_its_error(make, clock, told, monkeypatch):
    """A refused row is told, kept with its error, tried again, then dead, and may be revived; those behind it wait."""
    with monkeypatch.context() as patch:
        left_behind(patch)
        app = make(clock=clock)
        app.job("gone")(lambda: None)
        async with app:
            await with_orders(app)
            async with app.workspace() as ws, ws.database.transaction():
                await ws.enqueue_job("gone")
                await ws.enqueue_job("note", n=2)
    async with make(clock=clock) as app:
        for number, seconds in enumerate(WAITS_SECONDS, 1):
            # Time goes on faster than the row is tried: it may have been refused once more by now.
            await until(lambda number=number: len(told) >= number)
            refused, fields = told[number - 1]
            assert (refused, fields["retry_in_seconds"]) == (signals.OUTBOX_REFUSED, seconds)
            async with asyncio.timeout(LIMIT):
                while len(told) <= number:
                    await clock.advance(seconds)
        async with asyncio.timeout(LIMIT):
            while len(await rows(app)) > 1:
                await asyncio.sleep(0)
        (dead,) = await rows(app)
        assert (dead.attempts, "no job 'gone'" in dead.error) == (5, True)
        assert len(await runs(app)) == 1
        assert [signal for signal, _ in told] == [*[signals.OUTBOX_REFUSED] * 4, signals.OUTBOX_DEAD]
        async with app.workspace() as ws:
            assert await outbox.counts(await ws.require(Database)) == (0, 1)
            await ws.database.piecework_outbox.where(dead_at__ne=None).update(dead_at=None, attempts=0)
            assert await outbox.counts(await ws.require(Database)) == (1, 0)


def test_how_long_a_refused_row_waits():
    """The waits after a refusal grow, and after the last one there is none."""
    waits = [after_refusal(attempts) for attempts in range(1, 7)]
    assert waits == [*WAITS_SECONDS, None, None]
    assert sorted(WAITS_SECONDS) == list(WAITS_SECONDS)


@pytest.mark.covers("N188")
async def test_nodes_that_have_nothing_to_relay_open_nothing(make, tmp_path, app_database):
    """An app that never used the outbox has no table; a node makes no database file in order to look."""
    async with make() as app:
        assert app._relay is not None
        assert await app._relay.sweep() is None
        assert not (tmp_path / "app.db").exists()
        await with_orders(app)
        async with app.workspace() as ws:
            async with ws.database.transaction():
                await ws.database.orders.insert(id=1, name="Ada")
            assert await app._relay.sweep() is None
            assert "piecework_outbox" not in (await (await ws.require(Database)).schema(than=None)).tables


@pytest.mark.covers("N188")
async def test_a_node_looks_now_and_then(make, clock, heard, monkeypatch):
    """A node finds what a process that is no node left behind, `outbox_sweep_seconds` later at most."""
    async with make(clock=clock) as app:
        await with_orders(app)
        left_behind(monkeypatch)
        async with app.workspace() as ws, ws.database.transaction():
            await ws.enqueue_job("note", n=1)
        assert len(await rows(app)) == 1
        async with asyncio.timeout(LIMIT):
            while not heard:
                await clock.advance(app.settings.outbox_sweep_seconds)
        await until_empty(app)


@pytest.mark.covers("N189")
async def test_a_table_that_was_dropped_is_made_again(shop):
    """Whoever drops the table, the next transaction that needs it makes it again."""
    async with shop.workspace() as ws:
        for n in range(2):
            async with ws.database.transaction():
                run_id = await ws.enqueue_job("note", n=n)
            assert await shop.job_value(run_id) == n
            await until_empty(shop)
            await ws.database.run("drop table piecework_outbox")


@pytest.mark.covers("N189")
async def test_many_make_the_table_at_once(make, app_database):
    """Transactions that need the table first, side by side, all get through."""
    async with make() as app:
        await with_orders(app)

        async def order(ws: Any, n: int) -> str:
            async with ws.database.transaction():
                await ws.database.orders.insert(id=n, name="Ada")
                run_id: str = await ws.enqueue_job("note", n=n)
                return run_id

        ids = await app.map_in_workspaces(order, range(8))
        assert [await app.job_value(run_id) for run_id in ids] == list(range(8))


@pytest.mark.covers("N190")
async def test_a_delay_counts_from_the_call(shop):
    """A job that is delayed inside a transaction begins no sooner than it says, counted from the call."""
    async with shop.workspace() as ws:
        async with ws.database.transaction():
            run_id = await shop.note.options(delay_seconds=3600).enqueue(1)
        (run,) = await runs(shop)
        assert (run.run_id, run.status) == (run_id, "queued")


@pytest.mark.covers("N190")
async def test_what_stands_for_services_reaches_the_job(make):
    """A job of a transaction has what its caller put in the place of services, as long as the process lives."""
    app, seen = make(), []

    @app.service(scope="run")
    def greeting():
        return "hello"

    @app.job("greet")
    async def greet(ws, greeting):
        seen.append(greeting)

    async with app, app.workspace() as ws:
        await with_orders(app)
        with ws.override("greeting", "moin"):
            async with ws.database.transaction():
                run_id = await ws.enqueue_job("greet")
            await app.job_value(run_id)
    assert seen == ["moin"]


@pytest.mark.covers("N190")
async def test_work_that_is_done_again_promises_once(shop, heard):
    """A transaction that is done again by the same work promises the same: it is accepted once."""
    for _ in range(2):
        async with shop.workspace(key="order-1") as ws, ws.database.transaction():
            receipt = await ws.publish("told", {"n": 1})
            run_id = await ws.enqueue_job("note", n=2)
    await until_empty(shop)
    assert (await shop.job_value(run_id), receipt.dispatched) == (2, None)
    assert len(await runs(shop)) == 2


@pytest.mark.covers("N180")
async def test_a_transaction_that_ended_promises_nothing(shop):
    """A transaction takes no promise after its end."""
    async with shop.workspace() as ws:
        async with ws.database.transaction() as transaction:
            pass
        with pytest.raises(TransactionClosedError):
            await transaction.promise(outbox.EVENT, {"type": "told", "payload": {}, "id": "x", "space": None})


@pytest.mark.covers("W102")
async def test_a_row_of_another_workspace_notifies_nobody(shop):
    """A row is refused in a workspace that did not read it, also to notify somebody, and so is the other's database."""
    async with shop.workspace() as mine:
        await mine.database.run("create table people (id integer primary key, email text)")
        ada = await mine.database.people.insert(id=1, email="ada@example.org")

        async def tell(ws: Any) -> None:
            await ada.notify("hello")

        async def look(ws: Any) -> None:
            await mine.database.people.count()

        for use in (tell, look):
            with pytest.raises(CrossWorkspaceError) as caught:
                await mine.run_in_new_workspace(use)
            assert mine.id in str(caught.value)
        assert await ada.notify("hello")


@pytest.mark.covers("N189")
@pytest.mark.parametrize("app_database", ["postgres"], indirect=True)
async def test_a_role_that_may_not_make_tables_is_told(make, app_database, monkeypatch):
    """Where the table cannot be made, the promise is refused with what to do."""
    async with make() as app:
        await with_orders(app)
        async with app.workspace() as ws:
            await ws.database.run("create role poor")
            await ws.database.run("grant all on orders to poor")
            with pytest.raises(DatabaseError, match="guide"):
                async with ws.database.transaction():
                    monkeypatch.setattr(Database, "connect", _poor(Database.connect))
                    await ws.enqueue_job("note")
            await ws.database.run("drop owned by poor")
            await ws.database.run("drop role poor")


GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "transactions.md"


@pytest.mark.covers("N191")
def test_the_hook_for_alembic_leaves_the_table_out():
    """The guide's `include_name` leaves out the table of the outbox, and nothing else."""
    (hook,) = re.findall(r"^```py\n(.*?)^```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    made: dict[str, Any] = {}
    exec(hook, made)
    asked = [("piecework_outbox", "table"), ("orders", "table"), (None, "schema"), ("piecework_outbox", "column")]
    assert [made["include_name"](*each, {}) for each in asked] == [False, True, True, True]


@pytest.mark.covers("N189")
def test_the_guide_has_the_tables_definition():
    """What the guide has for roles that may not make tables is what is made."""
    (text,) = re.findall(r"^```sql\n(.*?)^```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    made = [str(statement) for statement in outbox_rows.creating("postgresql")]
    assert text.replace(";", "").split() == " ".join(made).split()


@pytest.mark.covers("N187")
async def test_a_row_that_cannot_be_read_holds_up_no_other(make, clock, told, monkeypatch):
    """A row whose text is no JSON object is refused by itself; the others are relayed."""
    with monkeypatch.context() as patch:
        left_behind(patch)
        async with make(clock=clock) as app:
            await with_orders(app)
            async with app.workspace() as ws:
                for n in range(2):
                    async with ws.database.transaction():
                        await ws.enqueue_job("note", n=n)
                await (await ws.database.piecework_outbox.first()).update(told="{oops")
    async with make(clock=clock) as app:
        await until(lambda: told)
        async with asyncio.timeout(LIMIT):
            while len(await rows(app)) > 1:
                await asyncio.sleep(0)
        (row,) = await rows(app)
        assert (row.attempts, "no JSON object" in row.error) == (1, True)
        assert len(await runs(app)) == 1


@pytest.mark.covers("N187")
async def test_doctor_counts_what_waits_and_what_is_dead(make, app_database, monkeypatch):
    """`piecework doctor` tells how many rows wait and how many are dead; what is dead is a warning."""
    left_behind(monkeypatch)
    async with make() as app:
        await with_orders(app)
        async with app.workspace() as ws:
            for n in range(3):
                async with ws.database.transaction():
                    await ws.enqueue_job("note", n=n)
            row = await ws.database.piecework_outbox.first()
            await row.update(dead_at=row.created_at, error="no such job")
    monkeypatch.setattr("piecework.cli.doctor.load_app", lambda name: app)
    found = await _outbox(Where(app="shop:app"))
    assert [(one.name, one.status, one.detail[:17]) for one in found] == [("outbox", "warning", "2 waiting, 1 dead")]


def _poor(connect: Callable[..., Any]) -> Callable[..., Any]:
    """Opens sessions of a role that may do nothing."""

    async def connect_as_poor(self: Database) -> Any:
        session = await connect(self)
        await session._connection.execute("set role poor")
        return session

    return connect_as_poor
