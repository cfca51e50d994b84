"""How SQLite commits: together what arrives together, one by one what fails, and nothing acknowledged before."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading

import pytest
from msgspec.structs import replace

from contracts.processes import WRITE
from piecework.errors import ConflictError, StoreError
from piecework.run.folds import decide_abort
from piecework.store.items import Abort
from piecework.store.records import Run
from piecework.store.sqlite import SqliteStore
from piecework.store.verbs.accept import accept
from piecework.store.verbs.runs import abort, enqueue
from piecework.testing.invariants import check_invariants
from piecework.testing.verbs import Verbs, decide_accept, event, job, route, slot


class Observed(SqliteStore):
    """A store whose connection can be looked at while nobody writes."""

    def _connect(self):
        connection = super()._connect()
        connection.set_trace_callback(self.seen.append)
        self.connections.append(connection)
        return connection

    @property
    def commits(self):
        return self.seen.count("COMMIT")

    def __init__(self, path):
        super().__init__(path)
        self.seen = []
        self.connections = []
        self.entered = threading.Event()
        self.gate = threading.Event()

    @contextlib.asynccontextmanager
    async def held_up(self):
        """Keeps the writer busy, so that whatever is submitted meanwhile is one group."""

        def wait(_draft, _item, _now):
            self.entered.set()
            assert self.gate.wait(20)

        first = asyncio.ensure_future(self.run(_nothing, None, wait, 0))
        await asyncio.to_thread(self.entered.wait, 20)
        self.seen.clear()
        try:
            yield
        finally:
            self.gate.set()
            await first


def _nothing(items, decide, now):
    yield from ()
    return [decide(None, item, now) for item in items]


@pytest.fixture
async def store(tmp_path):
    store = Observed(tmp_path / "state.db")
    await store.open()
    yield store
    store.gate.set()
    await store.close()


@pytest.fixture
async def verbs(store):
    yield Verbs(store)
    await check_invariants(store)


async def submitted(calls):
    """Starts calls and lets them get as far as the store."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    return tasks


async def test_what_arrives_together_shares_a_commit(store, verbs):
    """Fifty callers that come while a commit is under way share the next one."""
    async with store.held_up():
        tasks = await submitted(verbs.start(slot(str(n))) for n in range(50))
    assert [(await task).outcome for task in tasks] == ["started"] * 50
    assert store.commits == 2


async def test_different_verbs_share_a_commit(store, verbs):
    """A commit is shared by whatever arrives, not only by calls of one kind."""
    async with store.held_up():
        tasks = await submitted([verbs.start(slot()), verbs.enqueue(job()), verbs.claim(), verbs.due()])
    await asyncio.gather(*tasks)
    assert store.commits == 2


async def test_only_the_guilty_item_of_a_group_fails(store, verbs):
    """A group that cannot be committed is tried one by one: the others are decided, one commit each."""
    broken = job("job-bad")
    stray = replace(broken, run=replace(broken.run, status="nonsense"))
    async with store.held_up():
        good = await submitted(verbs.enqueue(job(f"job-{n}")) for n in range(3))
        (bad,) = await submitted([verbs.enqueue(stray)])
    with pytest.raises(StoreError, match="CHECK constraint"):
        await bad
    assert [(await task).duplicate for task in good] == [False] * 3
    assert store.commits == 1 + 3


async def test_a_refused_decision_costs_its_neighbours_nothing(store, verbs):
    """An item whose decision is refused shares the commit of the others."""
    async with store.held_up():
        tasks = await submitted([verbs.start(slot()), verbs.abort("nobody"), verbs.start(slot())])
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [getattr(answer, "outcome", type(answer).__name__) for answer in answers] == [
        "started",
        "NotFoundError",
        "queued",
    ]
    assert store.commits == 2


async def test_a_decision_that_blows_up_is_told_to_its_caller(store, verbs):
    """A fault of ours in one decision reaches the one who asked, and the writer goes on."""

    def explode(_draft, _item, _now):
        raise AssertionError("our own mistake")

    with pytest.raises(AssertionError, match="our own mistake"):
        await verbs.do(enqueue, job(), explode)
    assert (await verbs.start(slot())).outcome == "started"


@pytest.mark.parametrize("end", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()])
async def test_a_decision_cannot_end_anything_else(store, verbs, end):
    """What would end a thread or a loop ends neither: its caller is told what it was, and the writer goes on."""

    def finish(_draft, _item, _now):
        raise end

    async with store.held_up():
        (bad,) = await submitted([verbs.do(_nothing, None, finish)])
        (good,) = await submitted([verbs.start(slot())])
    with pytest.raises(StoreError, match=f"ended with {type(end).__name__}") as caught:
        await bad
    assert caught.value.__cause__ is end
    assert (await good).outcome == "started"


async def test_a_verb_that_cannot_be_grouped(store, verbs):
    """Even what is no verb at all is answered, to its caller alone."""
    async with store.held_up():
        (bad,) = await submitted([verbs.do(_nothing, None, [])])
        (good,) = await submitted([verbs.start(slot())])
    with pytest.raises(TypeError, match="unhashable"):
        await bad
    assert (await good).outcome == "started"


async def test_what_follows_a_commit_may_fail(store, verbs):
    """When what had to follow an outcome fails the loop is told; that caller and its neighbours get their outcomes."""
    heard = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: heard.append(context["exception"]))

    def then(_outcome):
        raise ConflictError("afterwards")

    async with store.held_up():
        (first,) = await submitted([store.run(_nothing, 1, lambda *_: "decided", 0, then)])
        (second,) = await submitted([verbs.start(slot())])
    assert await first == "decided"
    assert (await second).outcome == "started"
    assert [str(error) for error in heard] == ["afterwards"]


async def test_a_file_that_another_program_keeps_locked(store, verbs):
    """While somebody else's transaction keeps the file, a whole group is refused at once; then work goes on."""
    store.connections[0].execute("PRAGMA busy_timeout = 0").fetchall()
    other = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)

    def be_faster(text):
        store.seen.append(text)
        if text == "BEGIN IMMEDIATE" and not other.in_transaction:
            other.execute(text)

    async with store.held_up():
        tasks = await submitted(verbs.start(slot()) for _ in range(3))
        store.connections[0].set_trace_callback(be_faster)
    for task in tasks:
        with pytest.raises(StoreError, match=r"state\.db is locked by another program"):
            await task
    assert store.seen.count("BEGIN IMMEDIATE") == 1
    store.connections[0].set_trace_callback(None)
    other.execute("ROLLBACK")
    other.close()
    assert (await verbs.start(slot())).outcome == "started"


async def test_a_connection_that_is_lost_is_replaced(store, verbs):
    """A writer whose connection cannot be used any more gets another one, of the same kind."""

    def lose(_draft, _item, _now):
        store.connections[0].close()

    with pytest.raises(StoreError, match="closed database"):
        await verbs.do(_nothing, None, lose)
    assert (await verbs.start(slot())).outcome == "started"
    (synchronous,) = store.connections[-1].execute("PRAGMA synchronous").fetchone()
    assert synchronous == 2


async def test_a_reader_that_is_lost_is_replaced(store, verbs):
    """A query on a connection that was lost is answered all the same, on another one."""
    await verbs.enqueue(job("job-1"))
    assert len(await store.read("runs_by_id", {"run_ids": ["job-1"]}, Run)) == 1
    for connection in store.connections[1:]:
        connection.close()
    for _ in range(5):
        assert len(await store.read("runs_by_id", {"run_ids": ["job-1"]}, Run)) == 1


async def test_readers_write_nothing(store):
    """A query that would change something is refused on the connections for readers."""
    with pytest.raises(StoreError, match="readonly"):
        await store.read("delete_runs", {"run_ids": []})


async def test_questions_that_wait_together_fail_apart(store, verbs):
    """Of questions answered together one that cannot be asked fails, and one whose asker left harms none."""
    await verbs.enqueue(job("job-1"))
    asked = [["job-1"], [object()], ["job-1"], ["job-2"], ["job-1"]] * 10
    reads = [asyncio.ensure_future(store.read("runs_by_id", {"run_ids": ids}, Run)) for ids in asked]
    await asyncio.sleep(0)
    reads[4].cancel()
    answers = await asyncio.gather(*reads, return_exceptions=True)
    told = [type(answer).__name__ if isinstance(answer, BaseException) else len(answer) for answer in answers]
    assert told == [1, "TypeError", 1, 0, "CancelledError", *[1, "TypeError", 1, 0, 1] * 9]


async def test_a_reader_in_mid_query_holds_up_nobody(store, verbs):
    """While a query is being read the writer commits, and the query sees the state that it began with."""
    await asyncio.gather(*(verbs.enqueue(job(f"job-{number}")) for number in range(3)))
    reader = store._connect()
    rows = reader.execute("SELECT run_id FROM runs ORDER BY run_id")
    assert rows.fetchone() == ("job-0",)
    await verbs.enqueue(job("job-3"))
    assert rows.fetchall() == [("job-1",), ("job-2",)]
    reader.close()


async def test_text_that_no_column_takes(store, verbs):
    """Text with a lone surrogate is refused alone, whatever shares its group."""
    run_id = (await verbs.start(slot())).run_id
    async with store.held_up():
        (bad,) = await submitted([verbs.do(abort, Abort(run_id=run_id, reason="\ud800"), decide_abort)])
        (good,) = await submitted([verbs.start(slot())])
    with pytest.raises(UnicodeEncodeError):
        await bad
    assert (await good).outcome == "queued"
    assert (await verbs.run(run_id)).abort_reason is None


async def test_a_caller_that_leaves_is_decided_all_the_same(store, verbs):
    """A caller that is cancelled while it waits does not take back what it submitted."""
    async with store.held_up():
        (task,) = await submitted([verbs.enqueue(job("job-1"))])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await verbs.enqueue(job("job-1"))).duplicate


async def test_a_cancelled_caller_whose_item_fails(store, verbs):
    """The failure of an item that nobody waits for any more troubles nobody."""
    async with store.held_up():
        (task,) = await submitted([verbs.abort("nobody")])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await verbs.start(slot())).outcome == "started"


async def test_readers_see_only_what_is_committed(store, verbs):
    """While a group is being written readers see the state before it, and do not wait for it."""
    await verbs.enqueue(job("job-1"))
    async with store.held_up():
        tasks = await submitted([verbs.enqueue(job("job-2"))])
        assert len(await store.read("runs_by_id", {"run_ids": ["job-1", "job-2"]}, Run)) == 1
    await asyncio.gather(*tasks)


async def test_a_read_that_fails_names_the_file(store):
    """A query that cannot be run is told as the store's failure."""
    with pytest.raises(StoreError, match=r"state\.db failed"):
        await store.read("list_pieces", {})


@pytest.mark.parametrize("number", [1, 40])
async def test_what_was_acknowledged_survives_a_kill(tmp_path, process, number):
    """A writer that is killed right after an acknowledgement has lost nothing of it, and left nothing half done."""
    writer = process(WRITE, tmp_path / "killed.db", number)
    assert writer.line() == "acknowledged"
    writer.kill()
    store = SqliteStore(tmp_path / "killed.db")
    await store.open()
    verbs = Verbs(store)
    again = [await verbs.accept(event(event_id=f"e-{n}", routes=[route(slot("s"))])) for n in range(number)]
    assert all(answer.duplicate and answer.dispatched[0].reason == "started" for answer in again)
    assert len((await check_invariants(store)).runs) == number
    await store.close()


async def test_decisions_of_different_callers_do_not_mix(store, verbs):
    """Items that are decided by different functions do not share a batch, even under one verb."""

    def refuse(_draft, _entry, _now):
        raise ConflictError("never")

    async with store.held_up():
        (bad,) = await submitted([verbs.do(accept, event(routes=[route(slot())]), refuse)])
        (good,) = await submitted([verbs.do(accept, event(routes=[route(slot())]), decide_accept)])
    with pytest.raises(ConflictError):
        await bad
    assert (await good).dispatched[0].outcome == "started"
