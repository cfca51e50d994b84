"""Every class of error, done for real through the public door."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import sys
from pathlib import Path

import pytest

from piecework import App, Event, Exclusive, Settings, Stage, Workflow, pause
from piecework.container.container import Container
from piecework.errors import (
    AbortedError,
    AppImportError,
    BusyError,
    ClosedError,
    ConflictError,
    CpuLimitError,
    CrashedError,
    CrossWorkspaceError,
    CycleError,
    DatabaseError,
    DeadlockError,
    DeliveryUnknownError,
    DisposedError,
    DuplicateKeyError,
    ExecutionFailedError,
    ExpiredDefinitionError,
    InvalidScopeError,
    InvalidStateError,
    MailRefused,
    MailUnknown,
    MemoryLimitError,
    MissingExtraError,
    NoNodeError,
    NotFoundError,
    PieceworkError,
    PoolExhaustedError,
    ProcessLimitError,
    ProtocolError,
    RemoteError,
    SchemaVersionError,
    StaleEpochError,
    StoppedError,
    StoreError,
    StoreFormatError,
    StoreFullError,
    StoreLockedError,
    StoreUnavailableError,
    TimelineGapError,
    TimeoutExceededError,
    TransactionClosedError,
    UnstableError,
    ValidationError,
    WorkspacesLimitError,
)
from piecework.importing import load_app
from piecework.process import linux, protocol
from piecework.process.launch import Zygote
from piecework.process.protocol import Channel, Init, Run
from piecework.space.controller import Controller, UnknownIntegration, WorkerDied
from piecework.testing.verbs import Verbs, slot

from .apps import calls
from .flows import ended, flow, paused, run_id_of
from .test_timeline import Trouble
from .told import DOCS, check, docs_script, told

TESTS = Path(__file__).parents[1]
make_errors = docs_script("make_errors")
DONE: set[type[PieceworkError]] = set()

pytestmark = [pytest.mark.engines("sqlite"), pytest.mark.covers("N77")]
WORKERS = pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds")


def of(*classes: type[PieceworkError]):
    """Says which errors a test does for real."""
    DONE.update(classes)
    return lambda test: test


# -- all of them -------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_classes_say():
    """docs/errors.md has every class with its cause and cure; `python docs/make_errors.py` writes it."""
    assert make_errors.page() == (DOCS / "errors.md").read_text("utf-8")


def test_every_class_says_its_own_cause_and_cure():
    """Each class of error has a cause and a cure of its own, one sentence each."""
    said = [text for cls in make_errors.classes() for text in (cls.__dict__["cause"], cls.__dict__["cure"])]
    assert len(said) == len(set(said))
    assert [text for text in said if not text or text.endswith(".") or "\n" in text or "|" in text] == []


def test_every_class_is_done_for_real():
    """Each class of error is raised by a test of this file, by no more than using Piecework."""
    assert set(make_errors.classes()) == DONE


# -- workspaces ---------------------------------------------------------------------------------------------------


@of(CrossWorkspaceError)
async def test_cross_workspace(app):
    """What belongs to one workspace, inside a function that has another: both are named."""

    async def child(outer):
        with told(CrossWorkspaceError, "its database belongs to workspace", outer.id):
            outer.check_here("its database")

    async with app.workspace() as ws:
        await ws.run_in_new_workspace(child, ws)


@of(WorkspacesLimitError)
async def test_workspaces_limit(make_app):
    """As many workspaces as may be are open: who has the places, and what to do."""
    async with make_app(settings=Settings(workspaces_limit=1, workspaces_wait_seconds=0.05)) as app:
        holder = app.spawn_in_new_workspace(asyncio.Event().wait)
        await asyncio.sleep(0)
        with told(WorkspacesLimitError, "raise workspaces_limit", "Event.wait", limit=1):
            await app.run_in_new_workspace(lambda: 1)
        holder.cancel()


# -- definitions and calls ---------------------------------------------------------------------------------------


@of(NotFoundError)
async def test_not_found(app):
    """An unknown run: which, and how to see those there are."""
    with told(NotFoundError, "`piecework runs list` shows those there are", run_id="run-nobody"):
        await app.runtime.abort("run-nobody")


@of(ValidationError)
async def test_validation(app):
    """A payload that cannot be stored: where in it, and what to do."""
    with told(ValidationError, "convert it first", path="payload.when.days"):
        await app.publish("go", {"when": {"days": {1, 2}}})


@of(DuplicateKeyError)
async def test_duplicate(make_app):
    """A second workflow of one id: which, and to name another."""
    with told(DuplicateKeyError, "name another", key="flow"):
        make_app(flow(), flow())


@of(ConflictError)
async def test_conflict(make_app):
    """A workflow that is registered: which, and to deregister it first."""
    async with make_app(flow()) as app:
        with told(ConflictError, "deregister it first", id="flow"):
            await app.runtime.register(flow())


@of(BusyError)
async def test_busy(make_app, gate):
    """An invoke in a mode that takes no run: what became of it, and what to do."""
    async with make_app(flow(gate), mode=Exclusive()) as app:
        first = run_id_of(await app.publish("go"))
        await gate.reached.get()
        with told(BusyError, "try again later", outcome="rejected", active_run_id=first):
            (await app.runtime.invoke("flow", "default", Event("go"), admission="enforce")).unwrap()
        gate.open.set()


@of(TimelineGapError)
async def test_timeline_gap(make_app, monkeypatch):
    """A run whose log lines are lost where none may be: how many, and what to do."""

    async def say(ctx):
        ctx.logger.info("hello")

    async with make_app(flow(say), settings=Settings(strict_timeline=True)) as app:
        Trouble(app, monkeypatch)
        run_id = run_id_of(await app.publish("go"))
        with told(TimelineGapError, run_id):
            (await app.runtime.wait(run_id, timeout_seconds=20)).unwrap()


@of(InvalidStateError)
async def test_invalid_state(app):
    """A declaration when the app is open: of what, and the call that does it now."""
    with told(InvalidStateError, "await app.runtime.register('flow', …)", "'promises'"):
        app.workflow(flow())


@of(InvalidScopeError)
async def test_invalid_scope():
    """A service that asks for what lives shorter: which, and which scope to give it."""
    async with Container() as container:
        container.register("mailer", lambda ctx: ctx.run_id)
        with told(InvalidScopeError, "give it scope 'run' or 'transient'", "'mailer'"):
            await container.require("mailer")


@of(CycleError)
async def test_cycle():
    """Services in a circle: drawn, and how to break it."""
    async with Container() as container:
        container.register("a", lambda b: b)
        container.register("b", lambda a: a)
        with told(CycleError, "Let one of them ask later", path=["a", "b", "a"]):
            await container.require("a")


@of(UnstableError)
async def test_unstable():
    """A service whose state changes with each of its builds: which, and to read less."""
    state = Container.State({"n": 0})

    async def counts(ctx):
        n = ctx.select(lambda view: view["n"])
        await state.set({"n": n + 1})

    async with Container(state=state) as container:
        container.register("counter", counts)
        with told(UnstableError, "let its factory not change what it selects, or read less", name="counter"):
            await container.require("counter")


@of(DisposedError, ClosedError)
async def test_closed(make_app):
    """What is closed: which, and where to ask instead."""
    with told(ClosedError, "use it inside `async with app:`", "'promises'"):
        make_app().runtime.list_workflows()
    parent = Container("app")
    parent.register("thing", object)
    async with Container("run", id="r7", parents=[parent]) as container:
        await parent.dispose()
        with told(DisposedError, "open a new one", name="thing"):
            await container.require("thing")


# -- runs --------------------------------------------------------------------------------------------------------


@of(TimeoutExceededError)
async def test_timeout(make_app, gate):
    """A wait that is over: for which run, and that it goes on."""
    async with make_app(flow(gate)) as app:
        run_id = run_id_of(await app.publish("go"))
        with told(TimeoutExceededError, "it goes on", run_id=run_id):
            await app.runtime.wait(run_id, timeout_seconds=0)
        gate.open.set()


@of(ExecutionFailedError)
async def test_execution_failed(make_app):
    """A step that raises: the stage, the exception, and the line to look at."""

    async def fails(ctx):
        raise OSError("the feed is gone")

    async with make_app(flow(fails)) as app:
        result = await ended(app, await app.publish("go"))
    check(result.error, ExecutionFailedError, f"{Path(__file__).name}:", "only", "OSError: the feed is gone")


@of(AbortedError)
async def test_aborted(make_app, gate):
    """An aborted run: which, and why."""
    async with make_app(flow(gate)) as app:
        run_id = run_id_of(await app.publish("go"))
        await gate.reached.get()
        await app.runtime.abort(run_id, reason="the order was cancelled")
        result = await app.runtime.wait(run_id, timeout_seconds=20)
    check(result.error, AbortedError, "the order was cancelled", run_id)


@of(CrashedError)
async def test_crashed(make_app, gate, tmp_path):
    """A run under way in a store whose process is gone too often: which, and that its checkpoint is kept."""
    async with make_app(flow(gate)) as app:
        run_id = run_id_of(await app.publish("go"))
        await gate.reached.get()
        with sqlite3.connect(app.store.path) as there, sqlite3.connect(tmp_path / "killed.db") as copy:
            there.backup(copy)
        there.close()
        copy.close()
        gate.open.set()
    settings = Settings(crash_limit=1)
    async with make_app(flow(gate), store=f"sqlite:///{tmp_path}/killed.db", settings=settings) as app:
        result = await app.runtime.wait(run_id, timeout_seconds=20)
    check(result.error, CrashedError, "its checkpoint is kept", run_id)


@of(MemoryLimitError, ProcessLimitError, CpuLimitError)
@WORKERS
async def test_limits(store):
    """What a call in a process of its own took too much of: how much there was, and which setting says so."""
    settings = Settings(
        space_memory_bytes=100 << 20, space_processes=12, space_run_cpu_seconds=0.5, space_grace_seconds=0.3
    )
    calls.app.configure(store=store, settings=settings)
    async with calls.app:
        new = calls.app.workspace(isolation="process")
        with told(MemoryLimitError, "100 are allowed", "raise space_memory_bytes", name="hoard_together"):
            await new.run(calls.hoard_together)
        with told(ProcessLimitError, "12 are allowed", "raise space_processes", name="start_many"):
            await new.run(calls.start_many)
        with told(CpuLimitError, "more than 0.5 s", "raise space_run_cpu_seconds", name="spin"):
            await new.run(calls.spin)


@of(ExpiredDefinitionError)
async def test_expired_definition(make_app):
    """A run whose stage is gone: which, where it stands, what there is, and how to say where it goes on."""
    ask = Stage("ask", router=pause())
    async with make_app(Workflow("flow", on="go", stages=[ask, Stage("approve")])) as app:
        run_id = await paused(app, await app.publish("go"))
        await app.runtime.register(Workflow("flow", on="go", stages=[ask, Stage("review")]), replace=True)
        result = await app.runtime.resume(run_id)
        check(
            result.error, ExpiredDefinitionError, f"`piecework runs resume {run_id} --at STAGE`", "'approve'", "review"
        )


@of(StaleEpochError)
async def test_stale_epoch(app):
    """A write of a superseded owner: of which run, and who has it now."""
    verbs = Verbs(app.store)
    late = await verbs.running(slot("late"))
    await verbs.release(late)
    (now,) = await verbs.claim("node-2")
    with told(StaleEpochError, "another owner has it now", run_id=late.run_id, epoch=late.epoch):
        await verbs.settle(late)
    await verbs.end(now.run)


@of(PieceworkError)
async def test_internal(make_app):
    """A job that breaks of what it was given: what it was."""

    async def breaks(attempt):
        return attempt.args["message_id"]

    async with make_app() as app:
        app._parts.jobs.add_built_in("breaks", breaks)
        run_id = await app.enqueue("breaks", {})
        result = await app.runtime.wait(run_id, timeout_seconds=20)
    check(result.error, PieceworkError, "KeyError: 'message_id'")


# -- stores ------------------------------------------------------------------------------------------------------


async def opened(app: App) -> None:
    """Opens and closes an app."""
    async with app:
        pass


@of(StoreError)
async def test_store(tmp_path):
    """A store that is a directory: which, and to name a file."""
    with told(StoreError, "name a file in it", path=str(tmp_path)):
        await opened(App("x", store=f"sqlite:///{tmp_path}"))


@of(StoreLockedError)
async def test_store_locked(make_app, tmp_path):
    """A store that has a node: which, whose, and what to do."""
    async with make_app():
        with told(StoreLockedError, "stop it, or use another store", pid=os.getpid(), path=str(tmp_path / "state.db")):
            await opened(make_app())


@of(StoreFormatError)
async def test_store_format(tmp_path):
    """A file that is no store: which, and to name another."""
    path = tmp_path / "letter.txt"
    path.write_text("a letter to somebody, and not a database at all\n" * 100)
    with told(StoreFormatError, "Name another file", path=str(path)):
        await opened(App("x", store=f"sqlite:///{path}"))


@of(SchemaVersionError)
async def test_schema_version(make_app, tmp_path):
    """A store of a newer version: which, both versions, and to upgrade."""
    await opened(make_app())
    path = tmp_path / "state.db"
    connection = sqlite3.connect(path)
    (version,) = connection.execute("pragma user_version").fetchone()
    connection.execute("pragma user_version = 999")
    with told(SchemaVersionError, "upgrade Piecework", path=str(path), found=999, known=version):
        await opened(make_app())
    connection.execute(f"pragma user_version = {version}")
    connection.close()


@of(StoreUnavailableError)
async def test_store_unavailable():
    """A server that is not there: which, and what to look at."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with told(StoreUnavailableError, "is the server running, and are host and port right?", f"127.0.0.1:{port}/shop"):
        await opened(App("x", store=f"postgresql://me:secret@127.0.0.1:{port}/shop"))


@of(StoreFullError)
async def test_store_full(app):
    """A disk that is full: under which store, and to make room."""
    connection = app.store._writer._connection
    (used,) = connection.execute("pragma page_count").fetchone()
    connection.execute(f"pragma max_page_count = {used}").fetchall()
    with told(StoreFullError, "make room, nothing was lost", path=str(app.store.path)):
        await app.publish("go", {"text": "x" * 50_000})
    connection.execute("pragma max_page_count = 1000000").fetchall()


@of(NoNodeError)
async def test_no_node(make_app, tmp_path):
    """A client without a node: of which store, and the command that starts one."""
    path = tmp_path / "state.db"
    with told(NoNodeError, f"`piecework serve MODULE:APP --store sqlite:///{path}`", path=str(path)):
        async with make_app(settings=Settings(connect_timeout_seconds=0.1)).open(role="client"):
            pass


# -- other processes ---------------------------------------------------------------------------------------------


@of(MissingExtraError)
async def test_missing_extra(monkeypatch):
    """An optional part that is not installed: which, and the command that installs it."""
    for name in [name for name in sys.modules if name.startswith("piecework.store.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with told(MissingExtraError, "pip install 'piecework[postgres]'", extra="postgres"):
        await opened(App("x", store="postgresql://localhost/shop"))


@of(AppImportError)
def test_app_import(monkeypatch, tmp_path):
    """An app that is not there: which, and the names near it."""
    (tmp_path / "a_shop.py").write_text("apple = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with told(AppImportError, "did you mean 'apple'?", name="a_shop:appel"):
        load_app("a_shop:appel")
    del sys.modules["a_shop"]


@of(StoppedError)
async def test_stopped():
    """A worker that is wanted of a zygote that does not run: for which space, and to start it."""
    zygote = a_zygote()
    controller = Controller(zygote, "acme", Init(space="acme"), Settings(), nobody, print)
    with told(StoppedError, "start it", space="acme"):
        await controller.start()


def a_zygote() -> Zygote:
    """One that makes workers of the stub application."""
    return Zygote("stub_app:app", paths=[str(TESTS / "faults"), *sys.path], on_output=lambda line, space: None)


async def nobody(op, args, run_id):
    """Answers no question of a worker."""
    raise AssertionError(op)


@of(WorkerDied, RemoteError, UnknownIntegration)
@WORKERS
async def test_worker_died():
    """A worker that cannot start, that lacks a definition, that dies: of which space, how, and what it raised."""
    zygote = a_zygote()
    await zygote.start()
    try:
        broken = Controller(zygote, "acme", Init(space="acme", config={"broken": True}), Settings(), nobody, print)
        with pytest.raises(WorkerDied) as died:
            await broken.start()
        check(died.value, WorkerDied, "the database is not there", space="acme")
        check(died.value.__cause__, RemoteError, "the database is not there", type="RuntimeError")
        sound = Controller(zygote, "acme", Init(space="acme"), Settings(space_grace_seconds=0.2), nobody, print)
        await sound.start()
        with told(UnknownIntegration, "did you mean 'plain'", space="acme", piece_id="p1", integration="plian"):
            await sound.run(a_run("plian"), 60)
        with told(WorkerDied, "SIGSEGV", space="acme"):
            await sound.run(a_run("segfaults"), 60)
        await sound.stop()
    finally:
        await zygote.stop()


def a_run(integration: str) -> Run:
    """A run of a piece."""
    given = {"epoch": 1, "attempt": 1, "piece_id": "p1", "deadline_seconds": 60, "idempotency_key": "r1"}
    return Run(run_id="r1", integration=integration, **given)


@of(ProtocolError)
async def test_protocol():
    """A peer that sends garbage: what came, and what is allowed."""
    ours, theirs = socket.socketpair()
    ended_with = asyncio.get_running_loop().create_future()
    await Channel.open(ours, protocol.ToNode, print, ended_with.set_result)
    with theirs:
        theirs.send(b"GET / HTTP/1.1\r\n\r\n")
        check(await ended_with, ProtocolError, "are allowed", str(int.from_bytes(b"GET ", "big")))


# -- data and mail -----------------------------------------------------------------------------------------------


@of(DatabaseError)
async def test_database(make_app, tmp_path):
    """A database that cannot be opened: which, and what to look at."""
    path = tmp_path / "nowhere" / "app.db"
    async with make_app(database=f"sqlite:///{path}") as app, app.workspace() as ws:
        with told(DatabaseError, "does its folder exist, and may this process write there?", str(path)):
            await ws.database.users.count()


@of(PoolExhaustedError)
async def test_pool_exhausted(make_app, database):
    """A child that asks the database inside the transaction that has the only connection: the chain, and what to do."""

    async def child(ws):
        await ws.database.run("select 1")

    one = Settings(database_pool_size=1)
    async with make_app(database=database, settings=one) as app, app.workspace() as ws, ws.database.transaction():
        with told(PoolExhaustedError, "or raise database_pool_size", f"transaction of workspace {ws.id}", size=1):
            await ws.run_in_new_workspace(child)


@of(TransactionClosedError)
async def test_transaction_closed(users_app):
    """A task that goes on after the transaction that it was started in: whose it was, and what to do."""
    async with users_app.workspace() as ws:
        ended = asyncio.Event()

        async def late():
            await ended.wait()
            await ws.database.users.count()

        async with ws.database.transaction():
            task = asyncio.create_task(late())
        ended.set()
        with told(TransactionClosedError, "or has to be awaited inside", workspace_id=ws.id):
            await task


@of(DeadlockError)
async def test_deadlock(users_app):
    """A child that wants the lock which its awaiting caller holds: both, and what to do."""

    async def child(ws):
        async with ws.database.lock("digest"):
            raise AssertionError

    async with users_app.workspace() as ws, ws.database.lock("digest"):
        with told(DeadlockError, "or spawn the child instead of awaiting it", ws.id, lock="digest"):
            await ws.run_in_new_workspace(child)


@of(MailRefused)
async def test_mail_refused(make_app, mail_server):
    """A mail that the server refuses for good: its words, and which server; also as the result of the job."""
    mail_server.replies = ["550 no such user"]
    async with make_app(mail=mail_server.url) as app:
        with told(MailRefused, "550 no such user", mail_server.url.split("//")[1].split("?")[0]):
            await app.mail.deliver(MAIL, message_id="<1@test>")
        mail_server.replies = ["550 no such user"]
        async with app.workspace() as ws:
            run_id = await ws.send_mail(to="ada@example.org", subject="Hello", text="x")
        result = await app.runtime.wait(run_id, timeout_seconds=20)
    check(result.error, MailRefused, "550 no such user")


@of(MailUnknown, DeliveryUnknownError)
async def test_delivery_unknown(make_app, mail_server, clock):
    """A mail whose answer is lost twice: which, by which server, and to ask the recipient first."""
    mail_server.on_data = lambda: [each.transport.abort() for each in mail_server._made if each.transport]
    async with make_app(mail=mail_server.url, clock=clock) as app:
        with told(MailUnknown, "was lost before it said", mail_server.url.split("//")[1].split("?")[0]):
            await app.mail.deliver(MAIL, message_id="<1@test>")
        async with app.workspace() as ws:
            run_id = await ws.send_mail(to="ada@example.org", subject="Hello", text="x")
        waiting = asyncio.ensure_future(app.runtime.wait(run_id, timeout_seconds=20))
        while not waiting.done():
            await clock.advance(10)
        check((await waiting).error, DeliveryUnknownError, "ask the recipient before you send it again", run_id)


MAIL = {
    "sender": None,
    "to": ["ada@example.org"],
    "cc": [],
    "bcc": [],
    "subject": "Hello",
    "text": "x",
    "html": None,
    "headers": {},
    "reply_to": [],
    "attachments": [],
}
