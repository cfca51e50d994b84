"""Promises about the node: it runs what is due when it is due, sleeps otherwise, and leaves nothing behind."""

from __future__ import annotations

import asyncio

import pytest

from piecework.clock import SECOND
from piecework.errors import StaleEpochError, StoreFullError
from piecework.run.folds import decide_cleaned, decide_enqueue, decide_settle
from piecework.run.news import News
from piecework.run.node import Node
from piecework.store.items import Cleaned, Settle
from piecework.store.verbs.runs import cleaned, enqueue, settle
from piecework.testing.clock import VirtualClock
from piecework.testing.verbs import job


class Jobs:
    """A kind of work: each run does what the test wants and then ends."""

    name = "job"

    def __init__(self):
        self.begun = asyncio.Queue()
        self.hold = None
        self.failure = None
        self.ended = asyncio.Queue()
        self.aborted = []
        self.names = ["tidy"]
        self.node = None

    def versions(self):
        return {}

    def definitions(self):
        return {}

    def offers(self):
        return []

    def known(self):
        return self.names

    async def execute(self, claimed):
        self.begun.put_nowait(claimed)
        if self.failure is not None:
            raise self.failure
        if self.hold is not None:
            await self.hold.wait()
        run = claimed.run
        await self.node.commit(settle, Settle(run_id=run.run_id, epoch=run.epoch, status="completed"), decide_settle)
        await self.node.commit(cleaned, Cleaned(run_id=run.run_id, epoch=run.epoch), decide_cleaned)
        self.ended.put_nowait(run.run_id)

    def abort(self, run_id, reason):
        self.aborted.append((run_id, reason))


@pytest.fixture
def clock():
    return VirtualClock()


@pytest.fixture
def jobs():
    return Jobs()


@pytest.fixture
async def a_node(store, clock, jobs, verbs):
    nodes = []

    def make(node_id="node-1"):
        jobs.node = Node(node_id, store, {"job": jobs}, clock, News())
        nodes.append(jobs.node)
        return jobs.node

    yield make
    if jobs.hold is not None:
        jobs.hold.set()
    for node in nodes:
        await node.stop(5)


async def test_what_is_due_runs_at_once(a_node, jobs, verbs):
    """A node that starts runs what is due."""
    await verbs.enqueue(job("job-1"))
    await a_node().start()
    assert await jobs.ended.get() == "job-1"
    assert (await verbs.run("job-1")).status == "completed"


async def test_what_comes_later_runs_when_somebody_wakes_the_node(a_node, clock, jobs, verbs):
    """An idle node sleeps until it is told that there is work."""
    node = a_node()
    await node.start()
    await clock.until_asleep()
    await verbs.enqueue(job("job-1"))
    node.wake()
    assert await jobs.ended.get() == "job-1"


async def test_the_node_wakes_at_the_earliest_due_moment(a_node, clock, jobs, verbs):
    """A run for later is started at its moment by nobody but the clock."""
    await verbs.enqueue(job("job-1", due_at=clock.now() + 10 * SECOND))
    await a_node().start()
    await clock.until_asleep()
    await clock.advance(9.9)
    assert jobs.begun.empty()
    await clock.advance(0.1)
    assert await jobs.ended.get() == "job-1"


async def test_work_that_is_not_known_here_is_left_alone(a_node, clock, jobs, verbs):
    """What the node has no code for waits, and does not keep the node awake."""
    await verbs.enqueue(job("job-1"))
    jobs.names = ["other"]
    await a_node().start()
    await clock.until_asleep()
    assert (await verbs.run("job-1")).owner is None


async def test_what_a_dead_node_left_is_taken_over(a_node, jobs, verbs):
    """A node that starts takes over what its dead predecessor had, as a further attempt."""
    await verbs.enqueue(job("job-1"))
    await verbs.claim("dead")
    assert await a_node().start() == 1
    assert (await jobs.begun.get()).run.attempt == 2
    assert await jobs.ended.get() == "job-1"


async def test_stopping_waits_for_what_runs(a_node, jobs, verbs):
    """Within its grace a run ends by itself when the node stops."""
    await verbs.enqueue(job("job-1"))
    jobs.hold = asyncio.Event()
    node = a_node()
    await node.start()
    await jobs.begun.get()
    assert node.in_flight == 1
    stopping = asyncio.ensure_future(node.stop(5))
    await asyncio.sleep(0)
    jobs.hold.set()
    await stopping
    assert (node.in_flight, (await verbs.run("job-1")).status) == (0, "completed")


async def test_stopping_interrupts_what_does_not_end(a_node, jobs, verbs):
    """A run that does not end in time is given back uncounted, and the next node runs it."""
    await verbs.enqueue(job("job-1"))
    jobs.hold = asyncio.Event()
    node = a_node()
    await node.start()
    await jobs.begun.get()
    await node.stop(0)
    run = await verbs.run("job-1")
    assert (run.owner, run.attempt, run.due_at is not None) == (None, 0, True)
    jobs.hold.set()
    await a_node("node-2").start()
    assert await jobs.ended.get() == "job-1"


async def test_a_fault_of_ours_is_tried_again_a_little_later(a_node, clock, jobs, verbs, caplog):
    """When a kind of work itself fails the run is given back, counted, due a second later; and it is shown."""
    await verbs.enqueue(job("job-1"))
    jobs.failure = RuntimeError("a fault of ours")
    await a_node().start()
    await jobs.begun.get()
    await clock.until_asleep()
    while (await verbs.run("job-1")).owner is not None:
        await asyncio.sleep(0)
    run = await verbs.run("job-1")
    assert (run.attempt, run.due_at) == (1, clock.now() + SECOND)
    assert "a fault of ours" in caplog.text
    jobs.failure = None
    await clock.until_asleep()
    await clock.advance(1)
    assert (await jobs.begun.get()).run.attempt == 2
    assert await jobs.ended.get() == "job-1"


async def test_a_run_that_was_lost_is_let_go(a_node, jobs, verbs, caplog):
    """A run that turns out to be somebody else's is neither given back nor tried again here."""
    await verbs.enqueue(job("job-1"))
    jobs.failure = StaleEpochError("somebody else has it")
    node = a_node()
    await node.start()
    await jobs.begun.get()
    while node.in_flight:
        await asyncio.sleep(0)
    assert (await verbs.run("job-1")).owner == "node-1"
    assert "somebody else has it" in caplog.text


async def test_interrupting_the_runs_of_one_name(a_node, jobs, verbs):
    """The runs of one job can be interrupted; they stay in the store, due again."""
    await verbs.enqueue(job("job-1"))
    jobs.hold = asyncio.Event()
    node = a_node()
    await node.start()
    await jobs.begun.get()
    jobs.names = []
    await node.interrupt("job", "other")
    assert node.in_flight == 1
    await node.interrupt("job", "tidy")
    run = await verbs.run("job-1")
    assert (run.status, run.owner) == ("running", None)


async def test_an_abort_reaches_the_kind(a_node, jobs):
    """Whoever executes a run is told to end it."""
    a_node().abort("job-1", "enough")
    assert jobs.aborted == [("job-1", "enough")]


async def test_a_write_waits_while_the_disk_is_full(clock, jobs, verbs, caplog):
    """A run's write is tried again, ever more patiently, until there is room; nothing is lost."""

    class Full:
        left = 3

        async def run(self, verb, item, decide, now):
            if self.left:
                self.left -= 1
                raise StoreFullError("the disk is full")
            return await verbs.do(verb, item, decide)

    node = Node("node-1", Full(), {"job": jobs}, clock, News())
    writing = asyncio.ensure_future(node.commit(enqueue, job("job-1"), decide_enqueue))
    for pause in (0.1, 0.2, 0.4):
        await clock.until_asleep()
        await clock.advance(pause)
    assert not (await writing).duplicate
    assert caplog.text.count("store is full") == 3
