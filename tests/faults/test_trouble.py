"""The store refuses for a while, workers and their zygote die at bad moments: only what is to blame is charged."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sqlite3
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import astuple

from piecework import App, RetryAfter, Service, Settings, Stage, Success, WaitFor, Workflow
from piecework.errors import CrashedError, InvalidStateError, StoreError, ValidationError
from piecework.process import inside, linux
from piecework.space.gate import Gate
from piecework.store.items import Claim
from piecework.store.records import Run, Wait
from piecework.store.sqlite import SqliteStore, sqlite_path
from piecework.testing.contracts import check_invariants
from piecework.workflow.pause import waits_of

needs_workers = pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds")
LIMIT = 20  # seconds: what is not lost is there much earlier
QUICK = Settings(space_grace_seconds=0.2, close_timeout_seconds=2)


def licence():
    """What no worker gets."""
    if inside():
        raise ValueError("no such licence")
    return object()


# Workers import this file: what they run has to stand in it.
app = App("trouble")
unlicensed = App("unlicensed", services=[Service("licence", licence, lazy=False)])
app.workflow(Workflow("flow", on="go", stages=[Stage("only")]))


@app.piece("plain", every_seconds=3600)
@unlicensed.piece("plain", every_seconds=3600)
async def plain(piece):
    """Does nothing."""


@app.piece("held", every_seconds=3600)
async def held(piece):
    """Calls up the test and goes on when it is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", piece.config["port"])
    answer = await reader.readline()
    writer.close()
    return Success(answer.decode())


@app.piece("clings", every_seconds=3600)
async def clings(piece):
    """Leaves a task behind that does not end when it is cancelled, only when the test answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", piece.config["port"])

    async def cling():
        answered = False
        while not answered:
            try:
                answered = bool(await reader.readline())
            except asyncio.CancelledError:
                writer.write(b"cancelled\n")
        writer.close()

    piece.detached(cling())


@app.piece("later", every_seconds=3600)
async def later(piece):
    """Wants to come back when nobody lives any more."""
    return RetryAfter(seconds=1e13)


class Line:
    """Where updates call up: each call is a pair of reader and writer."""

    def __init__(self):
        self._calls = asyncio.Queue()
        self._writers = []

    async def open(self):
        self._server = await asyncio.start_server(self._taken, "127.0.0.1", 0)
        self.config = {"port": self._server.sockets[0].getsockname()[1]}

    async def _taken(self, reader, writer):
        self._writers.append(writer)
        self._calls.put_nowait((reader, writer))

    async def called(self):
        """Waits for the next call."""
        return await asyncio.wait_for(self._calls.get(), LIMIT)

    async def close(self):
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._server.wait_closed()


@pytest.fixture
async def line():
    """A line of the test's own."""
    line = Line()
    await line.open()
    yield line
    await line.close()


@pytest.fixture(autouse=True)
def _no_process_left():
    """Whatever a test starts has ended with it."""
    before = linux.children(os.getpid())
    yield
    assert linux.children(os.getpid()) <= before


@pytest.fixture
async def opened(tmp_path):
    """Opens apps, one after the other, over one store; when the test is over the store does not contradict itself."""
    url = f"sqlite:///{tmp_path / 'state.db'}"

    @contextlib.asynccontextmanager
    async def open_app(which=app, settings=QUICK):
        which.configure(store=url, settings=settings)
        async with which:
            yield which

    yield open_app
    left = SqliteStore(sqlite_path(url))
    await left.open()
    try:
        await check_invariants(left)
    finally:
        await left.close()


@pytest.fixture
def impatient(monkeypatch):
    """A store that waits for a locked file only for a moment."""
    connect = SqliteStore._connect

    def connect_impatiently(self):
        connection = connect(self)
        connection.execute("PRAGMA busy_timeout = 20")
        return connection

    monkeypatch.setattr(SqliteStore, "_connect", connect_impatiently)


class Trouble(logging.Handler):
    """Hears when a node says that it is in trouble."""

    def __init__(self):
        super().__init__()
        self.told = asyncio.Event()

    def emit(self, record):
        if getattr(record.msg, "event", "") == "node.trouble":
            self.told.set()


@pytest.fixture
async def trouble():
    """Hears of the test's own trouble."""
    handler = Trouble()
    logging.getLogger("piecework").addHandler(handler)
    yield handler
    logging.getLogger("piecework").removeHandler(handler)


@contextlib.contextmanager
def locked(store):
    """Keeps everybody else from writing into a store's file."""
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as file:
        file.execute("BEGIN IMMEDIATE")
        yield
        file.execute("ROLLBACK")


def one_step(step):
    """A workflow of one step and a stage after it."""
    return Workflow("one", on="one", stages=[Stage("first", steps=[step]), Stage("last")])


async def came_to(app, run_id):
    """What a run came to."""
    return await app.runtime.wait(run_id, timeout_seconds=LIMIT)


async def updated(app, space, piece_id="p"):
    """A piece's first update, ended."""
    run_id = (await app.pieces.runs(space, piece_id))[-1].run_id
    _ = (await came_to(app, run_id)).ok
    return await app.runtime.get(run_id)


async def add(app, space, integration, piece_id="p", **config):
    """Registers a piece."""
    await app.pieces.register(space=space, piece_id=piece_id, integration=integration, config=config)


def worker_of(app, space):
    """The controller of a space's worker."""
    return next(manager.controller for manager in app.spaces.managers() if manager.space == space)


def runs(pid):
    """Whether a process is there and no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


# -- the store -------------------------------------------------------------------------------------------------------


async def test_a_passing_trouble_of_the_store_fails_no_run(opened, impatient):
    """A run whose stage could not be written because the store was locked goes on from its last commit."""
    lock, ran = contextlib.ExitStack(), []

    async def locks(ctx):
        if not ran:
            lock.enter_context(locked(app.store))
        ran.append(ctx.run_id)
        return {"done": True}

    async with opened():
        submit = app.store.run

        async def passing(*args):
            try:
                return await submit(*args)
            except StoreError:
                lock.close()
                raise

        app.store.run = passing
        await app.runtime.register(one_step(locks))
        (told,) = (await app.publish("one")).dispatched
        assert (await came_to(app, told.run_id)).unwrap().state["done"]
    assert len(ran) == 2


async def test_a_run_that_could_not_be_given_back_is_not_stuck(opened, impatient, trouble):
    """A run that is interrupted while the store refuses to take it back goes on when its workflow is there again."""
    reached, ran = asyncio.Event(), []

    async def step(ctx):
        ran.append(ctx.run_id)
        reached.set()
        if len(ran) == 1:
            await asyncio.Event().wait()

    async with opened():
        await app.runtime.register(one_step(step))
        (told,) = (await app.publish("one")).dispatched
        await reached.wait()
        with locked(app.store):
            with pytest.raises(StoreError):
                await app.runtime.deregister("one")
            assert trouble.told.is_set()
        await app.runtime.register(one_step(step))
        assert (await came_to(app, told.run_id)).ok


async def test_one_event_is_held_against_twenty_thousand_waits(opened, monkeypatch):
    """However many runs an event may wake, no statement has more than some hundred bound variables."""
    most = 0

    class Counting(sqlite3.Connection):
        def execute(self, text, parameters=(), /):
            nonlocal most
            most = max(most, len(parameters))
            return super().execute(text, parameters)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Counting))
    async with opened():
        park_many(app.store, 20_000)
        assert (await app.publish("more", {"n": 1})).dispatched == []
    assert 0 < most <= 512


def park_many(store, count):
    """Writes runs that wait for an event by no value that an index would find."""
    wait_for = WaitFor("more", n__gt=10**9)
    ids = [f"{n:032x}" for n in range(count)]
    rows = {
        Run: [
            Run(run_id, "workflow", "flow", "go", "go", None, None, None, "default", "paused", None, None, None)
            for run_id in ids
        ],
        Wait: [waits_of(wait_for, run_id)[0] for run_id in ids],
    }
    with contextlib.closing(sqlite3.connect(store.path)) as file, file:
        for record, written in rows.items():
            marks = ", ".join("?" * len(record.__struct_fields__))
            file.executemany(f"INSERT INTO {record.table} VALUES ({marks})", map(astuple, written))
        file.execute("""UPDATE runs SET waiting_for = '["more"]'""")


# -- pieces and their workers ----------------------------------------------------------------------------------------


@needs_workers
async def test_the_next_update_of_a_piece_cannot_be_aborted(opened):
    """`abort` of a piece's queued update is refused with INVALID_STATE, and the piece's schedule goes on."""
    async with opened():
        await add(app, "acme", "plain")
        await updated(app, "acme")
        queued = (await app.pieces.runs("acme", "p"))[0]
        with pytest.raises(InvalidStateError, match="schedule"):
            await app.runtime.abort(queued.run_id)
        assert (await app.pieces.get("acme", "p")).next_run_at is not None
        again = await app.pieces.run_now("acme", "p", wait=True)
        assert (again.run_id, again.outcome) == (queued.run_id, "success")


@needs_workers
async def test_an_update_can_be_aborted_between_claim_and_start(opened):
    """An update that is aborted when it has been claimed and before it starts ends aborted, and the next is queued."""
    async with opened():
        submit = app.store.run

        async def abort_what_is_claimed(verb, item, *rest):
            outcome = await submit(verb, item, *rest)
            if isinstance(item, Claim) and outcome:
                app.store.run = submit
                assert await app.runtime.abort(outcome[0].run.run_id)
            return outcome

        app.store.run = abort_what_is_claimed
        await add(app, "acme", "plain")
        assert (await updated(app, "acme")).status == "aborted"
        assert (await app.pieces.runs("acme", "p"))[0].status == "queued"
        assert app.spaces.managers() == []


@needs_workers
async def test_a_worker_that_cannot_start_is_told(opened):
    """Where no worker can be started the space says why, whoever waits is told, and no piece is charged."""
    async with opened(unlicensed, settings=Settings(space_grace_seconds=0.2, crash_loop_limit=1)):
        await add(unlicensed, "acme", "plain")
        with pytest.raises(CrashedError, match="no such licence"):
            await unlicensed.pieces.run_now("acme", "p", wait=True)
        space, piece = await unlicensed.pieces.space("acme"), await unlicensed.pieces.get("acme", "p")
        assert (space.observed, "no such licence" in space.broken_reason) == ("broken", True)
        assert (piece.observed, piece.consecutive_failures, piece.last_run_at) == ("idle", 0, None)


@needs_workers
async def test_a_crowded_space_keeps_no_other_waiting(opened, line):
    """With hundreds of updates due in one space, other spaces and workflows go on; only its places are claimed."""
    async with opened(settings=Settings(space_concurrency=2, space_grace_seconds=0.2, close_timeout_seconds=0.1)):
        await asyncio.gather(*(add(app, "crowded", "held", f"p{n}", **line.config) for n in range(600)))
        for _ in range(2):
            await line.called()
        (told,) = (await app.publish("go")).dispatched
        await add(app, "quiet", "plain")
        assert (await came_to(app, told.run_id)).ok
        assert (await updated(app, "quiet")).outcome == "success"
        assert len(await app.runtime.list_all_runs(space="crowded", status="running")) == 2


@needs_workers
async def test_a_killed_zygote_is_replaced_once(opened, line):
    """When the zygote is killed under several spaces one other takes its place; their updates run again, uncharged."""
    spaces = ["one", "two", "three"]
    before = linux.children(os.getpid())
    async with opened():
        (zygote,) = linux.children(os.getpid()) - before
        for space in spaces:
            await add(app, space, "held", **line.config)
        for _ in spaces:
            await line.called()
        old = [pid for space in spaces for pid in (worker_of(app, space).pid, worker_of(app, space).keeper_pid)]
        os.kill(zygote, signal.SIGKILL)
        again = [await line.called() for _ in spaces]
        (another,) = linux.children(os.getpid()) - before
        assert another != zygote
        for _, writer in again:
            writer.write(b"go\n")
        updates = [await updated(app, space) for space in spaces]
        new = [pid for space in spaces for pid in (worker_of(app, space).pid, worker_of(app, space).keeper_pid)]
        assert [update.result for update in updates] == ["go\n"] * 3
        assert [piece.consecutive_failures for piece in await app.pieces.list()] == [0] * 3
    assert [pid for pid in (zygote, another, *old, *new) if runs(pid)] == []


@needs_workers
async def test_a_worker_that_takes_long_to_end_holds_up_nobody_else(opened, line):
    """While one space's worker is being ended to make room, another space's updates go on."""
    async with opened(settings=Settings(space_workers_limit=2, space_grace_seconds=10)):
        await add(app, "clinging", "clings", **line.config)
        reader, writer = await line.called()
        await updated(app, "clinging")
        await add(app, "warm", "plain")
        await updated(app, "warm")
        ending = worker_of(app, "clinging").pid
        await add(app, "new", "plain")  # wants the place of the one that has been idle longest
        assert await asyncio.wait_for(reader.readline(), LIMIT) == b"cancelled\n"
        assert (await app.pieces.run_now("warm", "p", wait=True)).outcome == "success"
        assert runs(ending)
        writer.write(b"go\n")
        assert (await updated(app, "new")).outcome == "success"


@needs_workers
@pytest.mark.parametrize("turns", [0, 2])
async def test_the_death_of_an_idle_worker_is_nobodys_failure(opened, turns):
    """An update that is due when its space's idle worker has just died runs in another one and is not charged."""
    async with opened():
        await add(app, "acme", "plain")
        await updated(app, "acme")
        os.kill(worker_of(app, "acme").pid, signal.SIGKILL)
        for _ in range(turns):
            await asyncio.sleep(0)
        again = await app.pieces.run_now("acme", "p", wait=True)
        assert (again.status, again.outcome, again.attempt) == ("completed", "success", 1)
        assert (await app.pieces.get("acme", "p")).consecutive_failures == 0


@needs_workers
async def test_an_update_that_never_began_is_not_to_blame(opened):
    """An update that was handed to a worker which died before it began runs in another one and is not charged."""
    async with opened():
        await add(app, "acme", "plain")
        await updated(app, "acme")
        worker = worker_of(app, "acme")
        os.kill(worker.pid, signal.SIGSTOP)
        again = asyncio.ensure_future(app.pieces.run_now("acme", "p", wait=True))
        while not worker.in_flight:
            await asyncio.sleep(0)
        os.kill(worker.pid, signal.SIGKILL)
        assert (await again).outcome == "success"
        assert (await app.pieces.get("acme", "p")).consecutive_failures == 0


@needs_workers
async def test_a_wish_to_come_back_in_a_million_years_is_cut(opened):
    """A RetryAfter of more than a hundred years is taken for a hundred; the piece can still be shown."""
    async with opened():
        await add(app, "acme", "later")
        update = await updated(app, "acme")
        (piece,) = await app.pieces.list()
        assert (update.outcome, piece.observed) == ("retry_after", "idle")
        assert 99 <= piece.next_run_at.year - piece.last_run_at.year <= 101


@needs_workers
@pytest.mark.parametrize("seconds", [1e12, float("inf"), float("nan")])
async def test_an_absurd_interval_is_refused(opened, seconds):
    """A piece's interval that is no positive number of at most a hundred years is refused; nothing is stored."""
    async with opened():
        with pytest.raises(ValidationError, match="hundred years"):
            await app.pieces.register(space="acme", piece_id="p", integration="plain", every_seconds=seconds)
        assert await app.pieces.list() == []


class Passing:
    """Tasks that go through a gate, stay inside until they are let out, and are counted."""

    def __init__(self):
        self.gate, self.inside, self.open = Gate(), [], asyncio.Event()
        self.entered = asyncio.Event()

    async def _pass(self, name, *, alone):
        async with self.gate.passing(alone=alone):
            self.inside.append(name)
            self.entered.set()
            if name == "first":
                await self.open.wait()

    async def start(self, name, *, alone=False):
        """Starts a task and lets it come as far as it does."""
        task = asyncio.ensure_future(self._pass(name, alone=alone))
        for _ in range(8):
            await asyncio.sleep(0)
        return task


async def test_who_gives_up_being_alone_stands_in_nobodys_way():
    """An update that wanted to be alone in its space and was cancelled while it waited keeps no other waiting."""
    passing = Passing()
    first = await passing.start("first")
    lonely = await passing.start("lonely", alone=True)
    other = await passing.start("other")
    assert passing.inside == ["first"]
    lonely.cancel()
    await asyncio.wait_for(other, LIMIT)
    assert passing.inside == ["first", "other"]
    passing.open.set()
    await asyncio.gather(first, lonely, return_exceptions=True)
