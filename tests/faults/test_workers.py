"""Promises about workers, kept with a real zygote, real keepers and pieces that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from piecework.clock import boottime
from piecework.config import Settings
from piecework.errors import AppImportError, RemoteError, StoppedError, TimeoutExceededError, ValidationError
from piecework.process import findings, inside, linux
from piecework.process.child import readable
from piecework.process.launch import Zygote
from piecework.process.lease import Lease
from piecework.process.protocol import Init, Run
from piecework.space.controller import Controller, State, WorkerDied
from piecework.store.lock_beat import LockHeartbeat
from piecework.telemetry import logs

pytestmark = pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds")
HERE = str(Path(__file__).parent)
QUICK = Settings(space_grace_seconds=0.2)


class Node:
    """What a node does around controllers, kept for a test to look at."""

    def __init__(self):
        self.lines = []
        self.asked = []
        self.logs = []
        self.told = asyncio.Queue()
        self.meeting = asyncio.Barrier(2)
        self.controllers = []
        self.zygote = self.make_zygote("stub_app:app")

    def make_zygote(self, target, **options):
        options = {"paths": [HERE, *sys.path]} | options
        return Zygote(target, on_output=lambda line, space: self.lines.append((space, line)), **options)

    async def on_ask(self, op, args, run_id):
        self.asked.append((op, args["type"], run_id))
        if args["type"] == "refused":
            raise ValidationError("an event type is not like that")
        if args["type"] == "meet":
            await self.meeting.wait()
        if args["type"] == "told":
            await self.told.put(args["payload"]["word"])
        return {"event_id": "e1"}

    async def controller(self, space="acme", settings=QUICK, **init):
        made = Controller(self.zygote, space, Init(space=space, **init), settings, self.on_ask, self.logs.append)
        self.controllers.append(made)
        await made.start()
        return made


@pytest.fixture
async def node():
    before = linux.children(os.getpid())
    node = Node()
    await node.zygote.start()
    yield node
    pids = [pid for made in node.controllers for pid in (made.pid, made.keeper_pid) if pid is not None]
    for made in node.controllers:
        await made.stop()
    await node.zygote.stop()
    assert not [pid for pid in pids if runs(pid)]
    assert linux.children(os.getpid()) <= before


def runs(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


async def gone(pid):
    """Waits until a process that is not our child has ended."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            async with asyncio.timeout(20):
                await readable(pidfd)
        finally:
            os.close(pidfd)


def a_run(integration, run_id="r1", **fields):
    given = {"epoch": 1, "attempt": 1, "piece_id": "p1", "deadline_seconds": 60, "idempotency_key": run_id}
    return Run(run_id=run_id, integration=integration, **given | fields)


async def outcome(node, integration, timeout_seconds=60, **fields):
    controller = await node.controller()
    return (await controller.run(a_run(integration, **fields), timeout_seconds)).outcome


async def test_success(node):
    """An update returns its verdict, and its state comes back changed."""
    controller = await node.controller()
    result = await controller.run(a_run("plain", state={"count": 1}, config={"url": "u"}), 60)
    assert result.outcome == {"name": "success", "data": {"config": {"url": "u"}, "attempt": 1}}
    assert result.state == {"count": 2}


async def test_sync_function(node):
    """An update may be a plain function."""
    assert await outcome(node, "sync") == {"name": "skipped", "reason": "not modified"}


async def test_returned_awaitable(node):
    """What an update returns is awaited when it can be."""
    assert (await outcome(node, "returns-coroutine"))["name"] == "success"


async def test_retry_after(node):
    """An update may ask for another time."""
    assert await outcome(node, "later") == {"name": "retry_after", "seconds": 5}


@pytest.mark.parametrize(("integration", "words"), [("junk", "returned a int"), ("unjson", "Success.data")])
async def test_what_is_no_verdict(node, integration, words):
    """Returning anything but a verdict of JSON values fails the run and names what came."""
    verdict = await outcome(node, integration)
    assert verdict["code"] == "VALIDATION_ERROR"
    assert words in verdict["error"]


@pytest.mark.covers("P31")
async def test_exception(node):
    """An exception fails the run with its type, message and trace; its state is not kept."""
    controller = await node.controller()
    result = await controller.run(a_run("raises"), 60)
    assert result.outcome["error"] == "LookupError: no such feed"
    assert "in raises" in result.outcome["trace"]
    assert result.state is None


async def test_leftover_task(node):
    """An update that starts a task and returns is not done until the task is."""
    assert (await outcome(node, "spawns"))["name"] == "success"
    assert [node.told.get_nowait(), node.told.get_nowait()] == ["child began", "child ended"]


async def test_failing_leftover(node):
    """A task that fails after its update returned fails that run, also while somebody still holds it."""
    verdict = await outcome(node, "spawns-failing")
    assert verdict["name"] == "failed"
    assert "boom in a child" in verdict["error"]
    assert "stub_app.py:" in verdict["error"]


async def test_strict_leftover(node):
    """Under strict accounting a leftover fails the run and names the line that started it."""
    verdict = await outcome(node, "strict")
    assert verdict["name"] == "failed"
    assert "stub_app.py:" in verdict["error"]


async def test_never_awaited_coroutine(node):
    """A coroutine that an update makes and never awaits fails it, the second time too."""
    controller = await node.controller()
    for run_id in ("r1", "r2"):
        verdict = (await controller.run(a_run("never-awaited", run_id), 60)).outcome
        assert "'told' was never awaited" in verdict["error"]


async def test_executor_item(node):
    """An executor item that an update left behind is awaited."""
    assert (await outcome(node, "thread"))["name"] == "success"
    assert node.told.get_nowait() == "thread"


async def test_detached(node):
    """What is detached does not hold its update up."""
    assert (await outcome(node, "detaches"))["name"] == "success"
    assert await node.told.get() == "detached"


async def test_two_at_once(node):
    """Two updates of a space run at the same time."""
    controller = await node.controller()
    results = await asyncio.gather(controller.run(a_run("meets", "a"), 60), controller.run(a_run("meets", "b"), 60))
    assert [result.outcome["name"] for result in results] == ["success", "success"]
    assert {run_id for _, _, run_id in node.asked} == {"a", "b"}


@pytest.mark.covers("P31")
async def test_refusal_by_the_node(node):
    """An error of the node's is raised in the update as what it is."""
    assert (await outcome(node, "asks-wrongly"))["type"] == "piecework.errors.ValidationError"


@pytest.mark.covers("P26")
async def test_cancel_at_the_deadline(node):
    """An update that takes too long is cancelled, and its worker serves on when it stops for that."""
    controller = await node.controller()
    verdict = (await controller.run(a_run("forever"), 0.1)).outcome
    assert (verdict["code"], controller.alive) == ("TIMEOUT", True)
    assert (await controller.run(a_run("plain", "r2"), 60)).outcome["name"] == "success"


@pytest.mark.covers("N530")
async def test_a_worker_that_makes_a_service_for_too_long_takes_no_more(node):
    """A worker whose shared service is still being made at a deadline lets its neighbours finish, and then ends."""
    controller = await node.controller()
    neighbour = asyncio.ensure_future(controller.run(a_run("meets", "neighbour"), 60))
    verdict = (await controller.run(a_run("makes"), 0.1)).outcome
    assert (verdict["code"], "still being made: session" in verdict["error"]) == ("TIMEOUT", True)
    assert controller.state is State.DRAINING
    await node.meeting.wait()
    assert (await neighbour).outcome["name"] == "success"
    assert await controller.dead() == 0


async def test_kill_at_the_deadline(node):
    """An update that ignores its cancellation is killed, with the processes that it started in other sessions."""
    controller = await node.controller()
    running = asyncio.ensure_future(controller.run(a_run("stubborn"), 0.5))
    await node.told.get()
    [child] = linux.children(controller.pid)
    verdict = (await running).outcome
    assert (verdict["code"], f"Ended with the worker: {child} (" in verdict["error"]) == ("TIMEOUT", True)
    assert controller.state is State.DEAD
    assert not runs(child)


async def test_busy_and_deaf(node):
    """An update that hogs its process and ignores SIGTERM is killed; its neighbour is interrupted, not charged."""
    controller = await node.controller()
    neighbour = asyncio.ensure_future(controller.run(a_run("forever", "neighbour"), 60))
    await node.told.get()
    assert (await controller.run(a_run("busy"), 0.2)).outcome["code"] == "TIMEOUT"
    with pytest.raises(WorkerDied) as died:
        await neighbour
    assert (died.value.charged, died.value.suspect) == (False, False)


async def test_terminate_lets_finally_run(node):
    """SIGTERM raises in the worker, so that `finally` runs even in a loop that never yields."""
    controller = await node.controller(settings=Settings(space_grace_seconds=1))
    assert (await controller.run(a_run("cleans-up"), 0.1)).outcome["code"] == "TIMEOUT"
    assert "cleaned up" in [log.message for log in node.logs]


@pytest.mark.covers("P23")
async def test_exit_in_a_run(node):
    """A worker that exits settles its run at once, with the exit status, and the run is charged when it was alone."""
    controller = await node.controller()
    with pytest.raises(WorkerDied, match="exit status 3") as died:
        await controller.run(a_run("exits"), 60)
    assert (died.value.status, died.value.charged, died.value.code) == (3, True, "CRASHED")


async def test_segfault(node):
    """A worker that crashes tells by which signal."""
    with pytest.raises(WorkerDied, match="SIGSEGV"):
        await outcome(node, "segfaults")


async def test_suspects(node):
    """Of several runs in flight when a worker dies none is charged, all are suspects."""
    controller = await node.controller()
    other = asyncio.ensure_future(controller.run(a_run("forever", "other"), 60))
    await node.told.get()
    ended = await asyncio.gather(controller.run(a_run("exits"), 60), other, return_exceptions=True)
    assert [(error.charged, error.suspect) for error in ended] == [(False, True), (False, True)]


@pytest.mark.covers("P29")
async def test_garbage(node):
    """A malformed frame ends its worker with an error that names it, and no other worker."""
    bystander = await node.controller("bystander")
    with pytest.raises(WorkerDied, match="broke the protocol: a frame came") as died:
        await outcome(node, "garbage")
    assert died.value.__cause__.code == "PROTOCOL"
    assert (await bystander.run(a_run("plain"), 60)).outcome["name"] == "success"


async def test_cancelled_caller(node):
    """A run whose caller is cancelled is stopped before the caller goes on."""
    controller = await node.controller()
    running = asyncio.ensure_future(controller.run(a_run("forever"), 60))
    await node.told.get()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (controller.in_flight, controller.alive) == (0, True)


async def test_stop(node):
    """Stopping closes the application in the worker and leaves no process."""
    controller = await node.controller()
    assert await controller.stop() == 0
    assert ("acme", "closed acme") in node.lines
    assert not runs(controller.keeper_pid)
    with pytest.raises(StoppedError):
        await controller.run(a_run("plain"), 60)


async def test_stop_with_a_run_under_way(node):
    """A run that is under way when its worker is stopped is interrupted, and nobody's failure."""
    controller = await node.controller()
    running = asyncio.ensure_future(controller.run(a_run("forever"), 60))
    await node.told.get()
    await controller.stop()
    with pytest.raises(WorkerDied) as died:
        await running
    assert (died.value.charged, died.value.suspect) == (False, False)


async def test_start_that_fails(node):
    """A worker that cannot open the application says why and leaves nothing behind."""
    with pytest.raises(WorkerDied, match="the database is not there") as died:
        await node.controller(config={"broken": True})
    assert isinstance(died.value.__cause__, RemoteError)
    assert not runs(node.controllers[0].keeper_pid)


@pytest.mark.covers("P26")
async def test_start_that_takes_too_long(node):
    """A worker that is not ready in time is killed."""
    with pytest.raises(TimeoutExceededError, match=r"not ready within 0\.2 s"):
        await node.controller(settings=Settings(space_init_seconds=0.2), config={"slow": True})
    assert not runs(node.controllers[0].keeper_pid)


async def test_stop_while_starting(node):
    """Stopping a worker that still starts ends the start, and leaves no process."""
    starting = asyncio.ensure_future(node.controller(config={"slow": True}))
    assert await node.told.get() == "opening"
    await node.controllers[0].stop()
    with pytest.raises(StoppedError):
        await starting
    assert not runs(node.controllers[0].keeper_pid)


async def test_output(node):
    """What a piece prints and logs reaches the node with its space, and its run where known."""
    controller = await node.controller("blue")
    await controller.run(a_run("logs"), 60)
    await controller.stop()
    assert ("blue", "closed blue") in node.lines
    assert [(log.message, log.fields, log.run_id, log.source) for log in node.logs] == [
        ("hello", {"pages": 3, "thing": "<class 'object'>"}, "r1", "logger"),
        ("half a \\ud800 pair", {"half": "'\\ud800'"}, "r1", "logger"),
        ("printed", {}, "r1", "print"),
    ]


async def test_environment(node, monkeypatch):
    """A worker sees its space's layer over a minimal environment, and nothing of the node's own."""
    monkeypatch.setenv("OPERATOR_PASS", "secret")
    controller = await node.controller(env={"LIMIT": "5"})
    seen = (await controller.run(a_run("environment"), 60)).outcome["data"]
    assert seen.pop("LIMIT") == "5"
    assert set(seen) <= {"PATH", "HOME", "LANG", "TMPDIR", "LC_CTYPE"}


async def test_random_state(node):
    """Workers do not share the state of a random generator that an import made."""
    one, two = await node.controller("one"), await node.controller("two")
    values = [(await made.run(a_run("random"), 60)).outcome["data"] for made in (one, two)]
    assert values[0] != values[1]


async def test_secrets_are_withheld():
    """A zygote's own environment has no secret, and the one that the app imports with says so."""
    lines = []
    environ = dict(os.environ) | {"OPERATOR_PASS": "s3cret", "SHOP_URL": "http://u:s3cret@h/"}
    zygote = Zygote(
        "prints_environment:app",
        paths=[HERE, *sys.path],
        environ=environ,
        on_output=lambda line, space: lines.append(line),
    )
    await zygote.start()
    real = b""
    with contextlib.suppress(PermissionError):  # only root may look at all
        real = Path(f"/proc/{zygote.pid}/environ").read_bytes()
    await zygote.stop()
    assert b"s3cret" not in real
    assert lines == ["withheld:", "http://u:withheld%3A@h/"]


@pytest.mark.parametrize("target", ["stub_app:nothing", "no_such_module:app"])
async def test_app_that_cannot_be_imported(target):
    """An application that cannot be imported over there is an error with the traceback from there."""
    zygote = Zygote(target, paths=[HERE, *sys.path], on_output=lambda line, space: None)
    with pytest.raises(AppImportError, match="Traceback"):
        await zygote.start()
    assert not zygote.alive


async def test_factory(node):
    """The application may be a function that makes it."""
    zygote = node.make_zygote("stub_app:create_app")
    await zygote.start()
    node.zygote, old = zygote, node.zygote
    await old.stop()
    assert (await outcome(node, "plain"))["name"] == "success"


async def test_script(node):
    """A script that the node runs as `__main__` is imported over there without its main block."""
    zygote = node.make_zygote("__main__:app", main_path=str(Path(HERE, "stub_app.py")))
    await zygote.start()
    node.zygote, old = zygote, node.zygote
    await old.stop()
    assert (await outcome(node, "plain"))["name"] == "success"


@pytest.mark.covers("N502")
async def test_script_that_spawns(node):
    """Processes that multiprocessing spawns in an update of a script's find the script."""
    zygote = node.make_zygote("__main__:app", main_path=str(Path(HERE, "stub_app.py")))
    await zygote.start()
    node.zygote, old = zygote, node.zygote
    await old.stop()
    assert (await outcome(node, "multiprocesses"))["data"] == 0


@pytest.mark.covers("N503")
async def test_never_begun(node):
    """A run that a neighbour has kept from beginning until its time was over is not to blame: it is run again alone."""
    controller = await node.controller()
    busy = asyncio.ensure_future(controller.run(a_run("busy"), 1))
    await node.told.get()
    with pytest.raises(WorkerDied, match="before this one could begin") as died:
        await controller.run(a_run("plain", run_id="r2"), 0.5)
    assert (died.value.charged, died.value.suspect) == (False, True)
    with contextlib.suppress(WorkerDied):
        await busy


async def test_inside(node):
    """A worker knows that it is one; the node is not."""
    assert (await outcome(node, "inside"))["data"] is True
    assert not inside()


async def test_killed_zygote(node):
    """Workers die with their zygote, and nobody is charged for more than that."""
    controller = await node.controller()
    os.kill(node.zygote.pid, signal.SIGKILL)
    await controller.dead()
    with pytest.raises(StoppedError):
        await node.controller("other")


@pytest.mark.covers("N506")
@pytest.mark.parametrize("how", ["returns", "raises", "awaits", "is terminated"])
async def test_fork_that_comes_back(node, how):
    """A process that an update forks and that comes back from it ends there; the update and its neighbours go on."""
    result = await outcome(node, "forks", 5, config={"how": how})
    assert (result["name"], result.get("data")) == ("success", {"ended": 1})
    assert (await outcome(node, "plain", run_id="r2"))["name"] == "success"


async def test_killed_keeper(node):
    """A worker and what it started die with their keeper, daemons included."""
    controller = await node.controller()
    running = asyncio.ensure_future(controller.run(a_run("stubborn"), 60))
    await node.told.get()
    [child] = linux.children(controller.pid)
    os.kill(controller.keeper_pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="status unknown"):
        await running
    await gone(child)
    await gone(controller.pid)


@pytest.mark.covers("N427")
@pytest.mark.parametrize("namespaces", [True, False])
async def test_privileges(node, namespaces):
    """A worker has no capability, also under root, leaves no core, and in a namespace sees no process but its own."""
    zygote = node.make_zygote("stub_app:app", namespaces=namespaces)
    await zygote.start()
    node.zygote, old = zygote, node.zygote
    await old.stop()
    found = (await outcome(node, "privileges"))["data"]
    assert {int(mask, 16) for mask in found["capabilities"].values()} == {0}
    assert found["core"] == [0, 0]
    assert namespaces is False or zygote.mode == "session" or found["seen"] == [1, found["pid"]]


@pytest.mark.parametrize("namespaces", [True, False])
async def test_what_flees(node, namespaces, tmp_path):
    """A process that forks and ends, again and again, does not outrun the keeper's kill."""
    zygote = node.make_zygote("stub_app:app", namespaces=namespaces)
    await zygote.start()
    node.zygote, old = zygote, node.zygote
    await old.stop()
    controller = await node.controller()
    running = asyncio.ensure_future(controller.run(a_run("flees", config={"escaped": str(tmp_path / "yes")}), 60))
    await node.told.get()
    os.kill(controller.pid, signal.SIGKILL)
    with pytest.raises(WorkerDied):
        await running
    assert not (tmp_path / "yes").exists()


@pytest.mark.covers("N428")
async def test_what_an_import_leaves_behind(node, monkeypatch, tmp_path):
    """Threads, loops, sockets and databases of an import are named; with threads each worker imports for itself."""
    monkeypatch.setenv("SEEN_AT_IMPORT", "yes")
    monkeypatch.setenv("DATABASE_OF_THE_TEST", str(tmp_path / "rows.db"))
    zygote = node.make_zygote("untidy_app:app")
    await zygote.start()
    node.zygote, old = zygote, node.zygote
    await old.stop()
    assert zygote.findings == (
        "thread 'poller' in threading.Event.wait",
        "event loop in untidy_app.LOOP",
        "socket ('0.0.0.0', 0) in untidy_app.SOCKET",
        f"database file {tmp_path / 'rows.db'}",
    )
    assert (await outcome(node, "tidies"))["data"] == [True, "yes"]
    assert old.findings == ()
    assert findings.of_import("untidy_app") == list(zygote.findings)


async def test_lapsed_lease(node):
    """A lease that lapses ends a worker, charges nobody, and starts no other before it is renewed."""
    lease = Lease()
    zygote = node.make_zygote("stub_app:app", lease=lease)
    await zygote.start()
    node.zygote, old = zygote, node.zygote
    await old.stop()
    controller = await node.controller()
    running = asyncio.ensure_future(controller.run(a_run("forever"), 60))
    await node.told.get()
    lease.renew(boottime(), 0.01)
    with pytest.raises(WorkerDied, match="had not renewed its lease") as died:
        await running
    assert (died.value.charged, died.value.suspect) == (False, False)
    with pytest.raises(StoppedError, match="lease has lapsed"):
        await node.controller("other")
    lease.renew(boottime(), 60)
    assert (await outcome(node, "plain"))["name"] == "success"


@pytest.mark.covers("N429")
async def test_blocked_loop(node):
    """A loop that is blocked for longer than the lease, but for less than a stall, ends no worker."""
    lease, beats, enough = Lease(), [], threading.Event()

    def held(moment):
        """Renews in the heartbeat's thread, and says when the first lease would be over."""
        beats.append(moment)
        lease.renew(moment, 2 if len(beats) == 1 else 60)
        if moment > beats[0] + 2:
            enough.set()

    zygote = node.make_zygote("stub_app:app", lease=lease)
    await zygote.start()
    node.zygote, old = zygote, node.zygote
    await old.stop()
    heartbeat = LockHeartbeat(every_seconds=0.1, stall_seconds=60, on_held=held)
    controller = await node.controller()
    await heartbeat.start()
    assert enough.wait(20)  # the loop stands still meanwhile
    assert (await controller.run(a_run("plain"), 60)).outcome["name"] == "success"
    lease.release()
    await heartbeat.stop()


async def test_stalled_loop(monkeypatch):
    """A loop that stands still for too long is one whose node says nothing more until it moves."""
    said = threading.Event()
    monkeypatch.setattr("piecework.store.lock_beat.emit", lambda *_, **fields: said.set())
    held = []
    heartbeat = LockHeartbeat(every_seconds=0.01, stall_seconds=0.2, on_held=held.append)
    await heartbeat.start()
    assert said.wait(20)  # the loop stands still meanwhile
    before = len(held)
    async with asyncio.timeout(20):
        while len(held) == before:
            await asyncio.sleep(0.01)
    await heartbeat.stop()


async def test_stopped_keeper(node):
    """A keeper that somebody has stopped is shown as such, and goes on when its worker is to end."""
    controller = await node.controller()
    assert controller.keeper_state == "running"
    os.kill(controller.keeper_pid, signal.SIGSTOP)
    async with asyncio.timeout(20):
        while controller.keeper_state != "stopped":
            await asyncio.sleep(0.01)
    while controller._child.tell({"do": "lease", "until": None}):
        pass  # until there is no room for another word
    await controller._abandon()
    assert controller.keeper_state == "dead"


@pytest.mark.covers("N550")
async def test_a_worker_holds_nothing_of_its_keeper(node):
    """What a worker has open is its own: none of the connections by which its keeper is led, whatever Python it is."""
    controller = await node.controller("acme")
    held = {pid: set(sockets_of(pid)) for pid in (controller.pid, controller.keeper_pid)}
    assert all(held.values())
    assert held[controller.pid] & held[controller.keeper_pid] == set()
    await controller.stop()


def sockets_of(pid):
    """The sockets that a process has open, as the kernel names them."""
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            name = str(descriptor.readlink())
            if name.startswith("socket:"):
                yield name


async def spare(zygote):
    """Waits until a zygote has a spare worker, and answers its keeper."""
    async with asyncio.timeout(25):
        while (child := zygote.spare) is None:
            await asyncio.sleep(0.001)
    return child.keeper_pid


@pytest.mark.covers("N504")
async def test_lines_are_not_of_the_run_that_came_first(node):
    """What a worker prints by itself, and its end, are not told as of the run for which it, or a spare, started."""
    await node.zygote.stop()
    printed = []
    options = {"paths": [HERE, *sys.path], "spare": True}
    node.zygote = Zygote("stub_app:app", on_output=lambda line, _: printed.append((line, logs.bound())), **options)
    await node.zygote.start()
    with logs.bind(run_id="r1", workflow_id="plain"):
        first = await node.controller("acme")
    await spare(node.zygote)
    with logs.bind(run_id="r2"):
        second = await node.controller("globex")
    await first.stop()
    assert ("closed acme", {}) in printed
    assert [bound for _, bound in printed if bound] == []
    ended = asyncio.get_running_loop().create_future()
    second._on_over = lambda _: ended.set_result(logs.bound())
    os.kill(second.pid, signal.SIGKILL)
    assert await ended == {}


@pytest.mark.covers("N474")
async def test_a_spare_worker(node):
    """While a worker is at work the next one stands ready for whoever comes; with the last worker it goes."""
    await node.zygote.stop()
    node.zygote = node.make_zygote("stub_app:app", spare=True)
    await node.zygote.start()
    first = await node.controller("acme")
    ready = await spare(node.zygote)
    second = await node.controller("globex")
    assert second.keeper_pid == ready
    assert (await second.run(a_run("logs"), 25)).outcome["name"] == "success"
    lost = await spare(node.zygote)
    os.kill(lost, signal.SIGKILL)
    await gone(lost)
    third = await node.controller("acme")
    assert third.keeper_pid != lost
    last = await spare(node.zygote)
    for controller in (first, second, third):
        await controller.stop()
    await gone(last)
    assert node.zygote.spare is None
    assert {space for space, _ in node.lines} <= {"globex", "acme"}
