"""Promises about the supervision of workers, kept with a real zygote and workers that misbehave; pauses are virtual."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
from pathlib import Path

import pytest
from msgspec import structs

from piecework.config import Settings
from piecework.errors import (
    AppImportError,
    InvalidStateError,
    StoppedError,
    StoreUnavailableError,
    ValidationError,
)
from piecework.process import linux
from piecework.process.address import Address
from piecework.process.lease import Lease
from piecework.process.protocol import Init, Run
from piecework.space.controller import UnknownIntegration, WorkerDied
from piecework.space.manager import Spaces
from piecework.space.supply import WorkerSupply
from piecework.telemetry import signals
from piecework.testing.clock import VirtualClock

pytestmark = pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds")
HERE = str(Path(__file__).parent)
SETTINGS = {"space_grace_seconds": 0.2, "heartbeat_seconds": 0.05, "space_stall_seconds": 0.05}


class Tenants:
    """The spaces of a node without its store, and what their workers said."""

    def __init__(self, target="stub_app:app", **settings):
        self.clock = VirtualClock()
        self.init = {}
        self.inits = 0
        self.told = asyncio.Queue()
        self.everybody = asyncio.Barrier(3)
        self.met = set()
        self.let_go = asyncio.Event()
        self.supply = WorkerSupply(
            Address(target),
            Settings(**SETTINGS | settings),
            make_init=self._make_init,
            lease=Lease(),
            answer=self._answer,
            on_log=lambda line, space: None,
            clock=self.clock,
        )
        self.spaces = Spaces(self.supply, Settings(**SETTINGS | settings), self.clock)

    def _make_init(self, space):
        self.inits += 1
        return Init(space=space, config=self.init)

    async def _answer(self, op, args, space):
        if args["type"] == "together" and args["payload"]["who"] not in self.met:
            self.met.add(args["payload"]["who"])
            await self.everybody.wait()
        if args["type"] in {"told", "held"}:
            await self.told.put(args["payload"]["word"])
        if args["type"] == "held":
            await self.let_go.wait()
        return {"event_id": "e1"}

    def start(self, integration="plain", run_id="r1", space="acme", **fields):
        given = {"epoch": 1, "attempt": 1, "piece_id": "p1", "deadline_seconds": 60, "idempotency_key": run_id}
        run = Run(run_id=run_id, integration=integration, **given | fields)
        return asyncio.ensure_future(self.spaces.run(space, run, 60))

    async def over(self, task):
        """Lets time go on until a task is over, and gives its end."""
        while not task.done():
            await self.clock.advance(0.25)
            await asyncio.wait({task}, timeout=0.02)
        return task.exception() or task.result()

    async def run(self, *args, **fields):
        return await self.over(self.start(*args, **fields))

    def of(self, space="acme"):
        return self.spaces.manager(space)


@pytest.fixture
async def make_tenants():
    made, before = [], linux.children(os.getpid())

    async def make(*args, **settings):
        tenants = Tenants(*args, **settings)
        made.append(tenants)
        await tenants.spaces.begin()
        return tenants

    if HERE not in sys.path:
        sys.path.insert(0, HERE)
    yield make
    for tenants in made:
        await tenants.spaces.stop()
        await tenants.spaces.end()
    assert linux.children(os.getpid()) <= before


@pytest.fixture
async def tenants(make_tenants):
    return await make_tenants()


@pytest.fixture
def heard(monkeypatch):
    """The signals that are emitted, as they come."""
    queue = asyncio.Queue()
    monkeypatch.setattr(signals, "emit", lambda name, **fields: queue.put_nowait((name, fields)))

    async def next_of(wanted):
        while True:
            name, fields = await queue.get()
            if name == wanted:
                return fields

    return next_of


def runs(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.covers("A9", "P20")
async def test_a_crash_while_it_starts_has_one_replacement(tenants):
    """A worker that crashes while it starts has exactly one replacement, after a pause; the run is not charged."""
    tenants.init = {"exits": True}
    put_off = await tenants.run()
    assert (type(put_off), put_off.again_seconds, tenants.of().observed) == (StoppedError, 0.5, "backoff")
    assert "exit status 7" in put_off.message
    tenants.init = {}
    again = tenants.start()
    other = tenants.start(run_id="r2")
    await tenants.clock.until_asleep()
    assert tenants.inits == 1
    await tenants.clock.advance(0.5)
    assert [task.outcome["name"] for task in await asyncio.gather(again, other)] == ["success", "success"]
    assert (tenants.inits, tenants.of().observed, tenants.of().reason) == (2, "ready", None)


@pytest.mark.covers("A10")
async def test_a_worker_that_cannot_start_breaks_its_space(tenants):
    """A space whose workers cannot start is tried a few times, then broken; after the end none is started."""
    tenants.init = {"broken": True}
    pauses = []
    while not tenants.of() or not tenants.of().broken:
        pauses.append((await tenants.run()).again_seconds)
        await tenants.clock.advance(pauses[-1])
    assert pauses == [0.5, 1, 2, 4, 60]
    assert "the database is not there" in tenants.of().reason
    for number in range(3):  # one probe, and then nobody is let near it
        put_off = await tenants.run(run_id=f"probe-{number}")
    assert (tenants.inits, tenants.of().observed) == (6, "broken")
    assert 100 < put_off.again_seconds <= 120
    await tenants.spaces.stop()
    tenants.of().mend()
    with pytest.raises(StoppedError, match="is stopping"):
        await tenants.start()
    assert tenants.inits == 6


@pytest.mark.covers("N460")
async def test_a_probe_mends_a_space(make_tenants):
    """A broken space is mended by the first run that comes back, by hand at once, and tried when somebody asks."""
    tenants = await make_tenants(crash_loop_limit=1)
    tenants.init = {"broken": True}
    assert (await tenants.run()).again_seconds == 60
    tenants.init = {}
    assert isinstance(await tenants.run(run_id="new"), StoppedError)
    assert (await tenants.run()).outcome["name"] == "success"  # put off, and back before its time: somebody wants it
    assert tenants.of().observed == "ready"
    for ask in (tenants.of().mend, tenants.of().probe):
        os.kill(tenants.of().controller.pid, signal.SIGKILL)
        await tenants.of().controller.dead()
        assert tenants.of().broken
        ask()
        assert (await tenants.run()).outcome["name"] == "success"
        assert not tenants.of().broken


@pytest.mark.covers("A8")
async def test_a_stop_while_a_worker_starts(tenants):
    """A node that stops while a worker starts leaves no process, charges no run, and starts no other."""
    tenants.init = {"slow": True}
    starting, waiting = tenants.start(), tenants.start(run_id="r2")
    assert await tenants.told.get() == "opening"
    keeper = tenants.of().controller.keeper_pid
    await tenants.spaces.stop()
    ends = await asyncio.gather(starting, waiting, return_exceptions=True)
    assert [type(end) for end in ends] == [StoppedError, StoppedError]
    assert (runs(keeper), tenants.inits) == (False, 1)


@pytest.mark.covers("A11", "P30")
async def test_a_hung_worker_does_not_hold_the_end_up(tenants, heard):
    """A worker that hangs and ignores SIGTERM does not hold up the end; what it had is interrupted, not charged."""
    hung, other = tenants.start("busy"), tenants.start("forever", "r2", space="beta")
    assert [await tenants.told.get(), await tenants.told.get()] == ["began", "began"]
    assert (await heard(signals.SPACE_BLOCKED))["space"] == "acme"
    workers = [manager.controller.pid for manager in tenants.spaces.managers()]
    await tenants.spaces.stop()
    ends = await asyncio.gather(hung, other, return_exceptions=True)
    assert [(type(end), end.charged, end.suspect) for end in ends] == [(WorkerDied, False, False)] * 2
    assert not [pid for pid in workers if runs(pid)]


@pytest.mark.covers("N461")
async def test_a_blocked_loop_is_seen(tenants, heard):
    """A worker whose loop does not turn is shown as blocked, since when, and is not ended for it."""
    blocking = tenants.start("blocks")
    assert await tenants.told.get() == "blocking"
    assert (await heard(signals.SPACE_BLOCKED))["runs"] == "r1"
    assert tenants.of().observed == "blocked"
    assert tenants.of().controller.blocked_at <= tenants.clock.now()
    os.kill(tenants.of().controller.pid, signal.SIGUSR1)
    assert (await heard(signals.SPACE_UNBLOCKED))["space"] == "acme"
    assert (await blocking).outcome["name"] == "success"
    assert (tenants.of().observed, tenants.of().restarts) == ("ready", 0)


@pytest.mark.covers("P19", "N462")
@pytest.mark.parametrize("order", [("culprit", "b", "c"), ("a", "b", "culprit")])
async def test_the_one_that_does_it_again_is_charged(tenants, order):
    """Of three updates under a worker that dies each runs again, alone; the one that does it again is charged."""
    together = [tenants.start("together", who, config={"who": who}) for who in order]
    ends = dict(zip(order, [await tenants.over(task) for task in together], strict=True))
    culprit = ends.pop("culprit")
    assert (type(culprit), culprit.charged, culprit.status) == (WorkerDied, True, 3)
    assert [end.outcome["name"] for end in ends.values()] == ["success", "success"]
    assert (tenants.of().broken, tenants.of().restarts) == (False, 2)


@pytest.mark.covers("N463")
async def test_charged_crashes_break_no_space(make_tenants):
    """Crashes that runs answer for put the next start off, and do not break the space of their neighbours."""
    tenants = await make_tenants(crash_loop_limit=2)
    for number in range(4):
        assert (await tenants.run("segfaults", f"r{number}")).charged
    assert (tenants.of().broken, tenants.of().observed) == (False, "backoff")
    await tenants.clock.advance(4)
    assert (await tenants.run()).outcome["name"] == "success"


@pytest.mark.covers("N464")
async def test_a_worker_lingers_and_makes_room(make_tenants):
    """An idle worker lingers; it goes after a while, or when another space wants its place. The next run wakes it."""
    tenants = await make_tenants(space_workers_limit=1, space_idle_seconds=300)
    await tenants.run(space="one")
    first = tenants.of("one").controller
    await tenants.run(space="two")
    assert (runs(first.pid), tenants.of("one")) == (False, None)
    second = tenants.of("two").controller
    await tenants.clock.until_asleep()
    await tenants.clock.advance(299)
    assert second.alive
    await tenants.clock.advance(1)
    await second.dead()
    assert (await tenants.run(space="one")).outcome["name"] == "success"


@pytest.mark.covers("P17")
async def test_who_comes_while_a_worker_starts_waits_for_it(tenants, heard):
    """Runs that come while their worker starts wait for that one worker, and none is asked for twice."""
    started = [tenants.start(run_id=f"r{number}") for number in range(6)]
    assert [result.outcome["name"] for result in await asyncio.gather(*started)] == ["success"] * 6
    assert (tenants.inits, (await heard(signals.SPACE_STARTED))["pid"]) == (1, tenants.of().controller.pid)


@pytest.fixture
async def controller(tenants):
    """Of a worker that has not been started."""
    return await tenants.supply.controller("acme", on_over=lambda death: None)


def a_run(**fields):
    given = {"epoch": 1, "attempt": 1, "piece_id": "p1", "deadline_seconds": 60, "idempotency_key": "r1"}
    return Run(run_id="r1", integration="plain", **given | fields)


@pytest.mark.covers("P22", "P24", "P25", "P27")
async def test_a_worker_lives_once(controller):
    """A worker is started once and ended once; out of turn it is refused, with the state that it is in."""
    with pytest.raises(StoppedError, match="is new and takes no runs"):
        await controller.run(a_run(), 60)
    starting = asyncio.ensure_future(controller.start())
    await asyncio.sleep(0)
    assert controller.state == "booting"
    with pytest.raises(StoppedError, match="is booting and takes no runs"):
        await controller.run(a_run(), 60)
    await starting
    assert (await controller.run(a_run(), 60)).outcome["name"] == "success"
    with pytest.raises(InvalidStateError, match="is ready: make another"):
        await controller.start()
    assert await asyncio.gather(controller.stop(), controller.stop()) == [0, 0]
    assert (await controller.stop(), controller.state) == (0, "dead")
    with pytest.raises(StoppedError, match="is dead and takes no runs"):
        await controller.run(a_run(), 60)


@pytest.mark.covers("P28")
async def test_what_no_frame_can_carry_is_refused_at_once(controller):
    """A run that no frame can carry is refused before anything of it is under way; the worker serves on."""
    await controller.start()
    for config in ({"text": "x" * 18_000_000}, {"number": 2**70}):
        with pytest.raises(ValidationError):
            await controller.run(a_run(config=config), 60)
    assert controller.in_flight == 0
    assert (await controller.run(a_run(), 60)).outcome["name"] == "success"
    await controller.stop()


@pytest.mark.covers("N468")
async def test_a_worker_drains(controller, tenants):
    """A worker that drains takes nothing new, brings back what it has, and then exits in order."""
    await controller.start()
    held = asyncio.ensure_future(controller.run(Run(**structs.asdict(a_run()) | {"integration": "held"}), 60))
    await tenants.told.get()
    draining = asyncio.ensure_future(controller.drain())
    await asyncio.sleep(0)
    with pytest.raises(StoppedError, match="is draining"):
        await controller.run(a_run(), 60)
    tenants.let_go.set()
    assert ((await held).outcome["name"], await draining) == ("success", 0)


@pytest.mark.covers("P6")
async def test_all_are_ended_when_one_cannot_be(tenants, monkeypatch):
    """When one worker cannot be ended in order the others are, and the error comes at the end."""
    await asyncio.gather(tenants.start(space="one"), tenants.start(space="two"))
    one, two = tenants.of("one").controller, tenants.of("two").controller

    async def fails():
        raise OSError("no more descriptors")

    with monkeypatch.context() as patch:
        patch.setattr(one, "stop", fails)
        with pytest.raises(ExceptionGroup) as failed:
            await tenants.spaces.stop()
    assert [str(error) for error in failed.value.exceptions] == ["no more descriptors"]
    assert (one.alive, two.alive) == (True, False)


@pytest.mark.covers("P4", "P13")
async def test_begin_and_stop_may_be_called_again():
    """To stop what has not begun ends nothing and is no error; begin and stop may be called again."""
    tenants = Tenants()
    await tenants.spaces.stop()
    await tenants.spaces.begin()
    assert (tenants.spaces.managers(), tenants.supply._zygote.alive) == ([], False)
    await tenants.spaces.stop()


@pytest.mark.covers("P21")
async def test_the_next_worker_does_not_wait_for_the_old_ones_manners(tenants, heard):
    """A worker that cannot be ended in order is killed, and the next one serves its space all the same."""
    hung = tenants.start("busy")
    await heard(signals.SPACE_BLOCKED)
    worker = tenants.of().controller
    hung.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hung
    assert not runs(worker.pid)
    assert (await tenants.run()).outcome["name"] == "success"
    assert tenants.of().restarts == 0


@pytest.mark.covers("A5", "P29")
async def test_a_late_result_of_another_attempt_is_refused(tenants):
    """A result that names an attempt which is over counts for nothing, also when its run is under way again."""
    result = await tenants.run("forges", epoch=2)
    assert (result.epoch, result.outcome["data"]) == (2, "in time")


VERSION = "from stub_app import *\n@piece('version')\ndef version(piece):\n    return Success({})\n"


@pytest.fixture
def code(tmp_path, monkeypatch):
    """Writes another version of the module `versioned`."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        (tmp_path / "versioned.py").write_text(text)

    write(VERSION.format(1))
    return write


@pytest.mark.covers("N465")
async def test_new_code_takes_over(make_tenants, code, heard):
    """After a reload the next run has the new code; what is under way ends under the old, whose zygote then goes."""
    tenants = await make_tenants("versioned:app")
    held = tenants.start("held", "r1")
    assert await tenants.told.get() == "held"
    old, old_zygote = tenants.of().controller, tenants.supply._zygote
    code(VERSION.format(222))  # longer: within a second Python compares lengths
    await tenants.spaces.reload()
    assert (await tenants.run("version", "r2")).outcome["data"] == 222
    assert runs(old.pid)
    tenants.let_go.set()
    assert (await held).outcome["name"] == "success"
    await old.dead()
    await tenants.supply._leaving[old_zygote]
    assert (old_zygote.alive, tenants.of().restarts) == (False, 0)


@pytest.mark.covers("N531")
async def test_what_one_space_lacks_stops_no_other(tenants):
    """What the worker of one space says that it lacks is asked of it no more for a while, and stops no other space."""
    assert isinstance(await tenants.run("plian"), UnknownIntegration)
    pid = tenants.of().controller.pid
    again = await tenants.run("plian", "r2")
    assert (type(again), 1 <= again.again_seconds <= 10) == (StoppedError, True)
    assert (await tenants.run("plain", "r3")).outcome["name"] == "success"
    assert (tenants.of().controller.pid, tenants.spaces.lacks("plian")) == (pid, False)
    assert isinstance(await tenants.run("plian", "r4", "beta"), UnknownIntegration)
    assert tenants.spaces.lacks("plian")
    await tenants.clock.advance(60)
    assert not tenants.spaces.lacks("plian")
    assert isinstance(await tenants.run("plian", "r5"), UnknownIntegration)


@pytest.mark.covers("N466")
async def test_code_that_cannot_be_imported_changes_nothing(make_tenants, code, heard):
    """New code that cannot be imported is told, and the old one goes on."""
    tenants = await make_tenants("versioned:app")
    code("1 +")
    with pytest.raises(AppImportError, match="SyntaxError"):
        await tenants.spaces.reload()
    assert (await tenants.run("version")).outcome["data"] == 1


@pytest.mark.covers("N469")
async def test_changed_files_are_noticed(make_tenants, code, heard, monkeypatch):
    """With `serve --reload` a change of the app's own files is taken up, and a mistake in them is told."""
    tenants = await make_tenants("versioned:app")
    monkeypatch.delitem(sys.modules, "versioned", raising=False)
    importlib.import_module("versioned")
    watching = asyncio.ensure_future(tenants.spaces.reload_on_change(every_seconds=0.01))
    await asyncio.sleep(0)
    code(VERSION.format(222))
    await heard(signals.ZYGOTE_REPLACED)
    assert (await tenants.run("version")).outcome["data"] == 222
    code("1 +")
    assert "SyntaxError" in (await heard(signals.NODE_TROUBLE))["error"]
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


@pytest.mark.covers("N526")
async def test_changes_of_files_that_only_the_new_code_has_are_noticed(make_tenants, code, heard, tmp_path):
    """A file that the code as it was did not import is noticed too, also when a mistake in it kept it from use."""
    tenants = await make_tenants("versioned:app")
    watching = asyncio.ensure_future(tenants.spaces.reload_on_change(every_seconds=0.01))
    await asyncio.sleep(0)
    helper = tmp_path / "versioned_helper.py"
    helper.write_text("1 +")
    code("from versioned_helper import NUMBER\n" + VERSION.format("NUMBER"))
    assert "SyntaxError" in (await heard(signals.NODE_TROUBLE))["error"]
    helper.write_text("NUMBER = 7")
    await heard(signals.ZYGOTE_REPLACED)
    assert (await tenants.run("version")).outcome["data"] == 7
    helper.write_text("NUMBER = 7_000")  # longer: within a second Python compares lengths
    await heard(signals.ZYGOTE_REPLACED)
    assert (await tenants.run("version", "r2")).outcome["data"] == 7_000
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


@pytest.mark.covers("N467")
async def test_a_reload_leaves_no_worker_at_the_end(make_tenants, code):
    """The end ends also what still finishes under the code from before."""
    tenants = await make_tenants("versioned:app")
    held = tenants.start("held", "r1")
    await tenants.told.get()
    old = tenants.of().controller
    await tenants.spaces.reload()
    await tenants.run("version", "r2")
    await tenants.spaces.stop()
    with pytest.raises(WorkerDied) as died:
        await held
    assert (runs(old.pid), died.value.charged) == (False, False)


async def test_a_store_that_fails_once_keeps_no_worker_for_ever(tenants, heard):
    """A node that cannot ask whether a space is wanted says so, asks again, and then lets its worker go."""
    asked = []

    async def is_wanted(space):
        asked.append(space)
        if len(asked) == 1:
            raise StoreUnavailableError("the store is away")
        return False

    tenants.spaces.is_wanted = is_wanted
    await tenants.run()
    tenants.spaces.doubt("acme")
    assert "the store is away" in str((await heard(signals.NODE_TROUBLE))["error"])
    gone = asyncio.ensure_future(heard(signals.SPACE_HIBERNATED))
    assert (await tenants.over(gone))["space"] == "acme"
