from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from piecework import Serialized, Transient
from piecework.errors import ValidationError

from .flows import ended, flow, keep, run_id_of


class Meter:
    """A step that counts how many of it are under way at once, and in which order they began."""

    def __init__(self, fail_every=0):
        self.now = Counter()
        self.most = Counter()
        self.order = []
        self.fail_every = fail_every

    async def __call__(self, ctx):
        key = ctx.event.space or "all"
        self.order.append(ctx.state["n"])
        self.now[key] += 1
        self.most[key] = max(self.most[key], self.now[key])
        await ctx.workspace.publish("tick")  # yields to the loop and to the store, as real work does
        self.now[key] -= 1
        if self.fail_every and ctx.state["n"] % self.fail_every == 0:
            raise RuntimeError("every so often")


async def all_ended(app, receipts):
    return [await ended(app, receipt) for receipt in receipts]


@pytest.mark.covers("R4", "R56")
async def test_no_more_runs_at_once_than_the_mode_allows(make_app):
    """With 1,000 events at once never more runs are live than `concurrency`, and every one of them completes."""
    meter = Meter()
    async with make_app(flow(meter), mode=Transient(concurrency=7, capacity=1000)) as app:
        receipts = await asyncio.gather(*(app.publish("go", {"n": n}) for n in range(1000)))
        results = await all_ended(app, receipts)
    assert all(result.ok for result in results)
    assert meter.most["all"] == 7
    assert sorted(meter.order) == list(range(1000))


@pytest.mark.covers("R20", "R57")
async def test_what_is_over_capacity_is_dropped(make_app, gate):
    """Transient takes concurrency and capacity; with all places and the queue full the next event is dropped."""
    async with make_app(flow(gate), mode=Transient(concurrency=2, capacity=1)) as app:
        results = [(await app.publish("go")).dispatched[0] for _ in range(4)]
        assert [result.outcome for result in results] == ["started", "started", "queued", "dropped"]
        assert (results[3].reason, results[3].run_id) == ("capacity", None)
        gate.open.set()
        for result in results[:3]:
            assert (await app.runtime.wait(result.run_id, timeout_seconds=20)).ok
        assert len(await app.runtime.list_all_runs()) == 3


@pytest.mark.covers("R17")
async def test_the_mode_holds_from_the_first_event(make_app, gate):
    """The mode holds from the very first event after registration."""
    async with make_app() as app:
        await app.runtime.register(flow(gate), mode=Serialized(capacity=0))
        outcomes = [r.dispatched[0].outcome for r in await asyncio.gather(*(app.publish("go") for _ in range(3)))]
        gate.open.set()
    assert outcomes == ["started", "dropped", "dropped"]


@pytest.mark.covers("R58", "R59")
async def test_serialized_keeps_the_order_and_never_overlaps(make_app):
    """100 events in serialized mode run one at a time in the order in which they were accepted, failures included."""
    meter = Meter(fail_every=7)
    async with make_app(flow(meter), mode=Serialized()) as app:
        results = await all_ended(app, [await app.publish("go", {"n": n}) for n in range(100)])
    assert meter.order == list(range(100))
    assert meter.most["all"] == 1
    assert [result.ok for result in results] == [bool(n % 7) for n in range(100)]


@pytest.mark.covers("R60")
async def test_nothing_waiting_starts_after_deregister(make_app, gate):
    """A failing run does not stop the next one; after `deregister` nothing that waits starts."""

    async def first_fails(ctx):
        await gate(ctx)
        if ctx.state["n"] == 0:
            raise RuntimeError("the first")

    async with make_app(flow(first_fails), mode=Serialized()) as app:
        runs = [run_id_of(await app.publish("go", {"n": n})) for n in range(3)]
        gate.open.set()
        assert not (await app.runtime.wait(runs[0], timeout_seconds=20)).ok
        assert (await app.runtime.wait(runs[1], timeout_seconds=20)).ok
        assert (await app.runtime.wait(runs[2], timeout_seconds=20)).ok
        gate.open.clear()
        held, waits = [run_id_of(await app.publish("go", {"n": n})) for n in (3, 4)]
        while await gate.reached.get() != held:
            pass
        await app.runtime.deregister("flow", grace_seconds=0)
        assert gate.reached.empty()
        assert [(await app.runtime.get(run_id)).status for run_id in (held, waits)] == ["aborted", "aborted"]


@pytest.mark.covers("E33")
@pytest.mark.parametrize("mode", [Transient(concurrency=1, capacity=0), Serialized(capacity=0)])
async def test_capacity_nought_means_none_waits(make_app, gate, mode):
    """Capacity 0 means that nothing waits: what comes while all places are taken is dropped."""
    async with make_app(flow(gate), mode=mode) as app:
        outcomes = [(await app.publish("go")).dispatched[0].outcome for _ in range(2)]
        gate.open.set()
    assert outcomes == ["started", "dropped"]


@pytest.mark.covers("N46")
async def test_lower_numbers_hold_for_new_runs(make_app, gate):
    """Registering again with less concurrency ends no run: the new number holds for what starts from then on."""
    async with make_app(flow(gate), mode=Transient(concurrency=2)) as app:
        runs = [run_id_of(await app.publish("go")) for _ in range(2)]
        for _ in runs:
            await gate.reached.get()
        await app.runtime.register(flow(gate), mode=Transient(concurrency=1), replace=True)
        assert {await gate.reached.get() for _ in runs} == set(runs)
        late = await app.publish("go")
        assert late.dispatched[0].outcome == "queued"
        gate.open.set()
        assert (await ended(app, late)).ok


async def test_keys_have_places_of_their_own(make_app):
    """With `key=` the limits hold for each key apart, and keys do not wait for each other."""
    meter = Meter()
    async with make_app(flow(meter), mode=Serialized(key=lambda event: event.space)) as app:
        sent = [await app.publish("go", {"n": n}, space=f"s{n % 3}") for n in range(30)]
        await all_ended(app, sent)
    assert meter.most == {"s0": 1, "s1": 1, "s2": 1}
    assert [n for n in meter.order if n % 3 == 0] == list(range(0, 30, 3))


async def test_what_waits_survives_a_restart(make_app, gate):
    """Runs that wait for their place are still there after a restart, in their order."""
    async with make_app(flow(gate), mode=Serialized()) as app:
        runs = [run_id_of(await app.publish("go", {"n": n})) for n in range(4)]
        await app.runtime.stop(grace_seconds=0)
    ran = []
    async with make_app(flow(keep(ran, lambda ctx: ctx.state["n"])), mode=Serialized()) as app:
        for run_id in runs:
            assert (await app.runtime.wait(run_id, timeout_seconds=20)).ok
    assert ran == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "build", [lambda: Transient(concurrency=0), lambda: Transient(capacity=-1), lambda: Serialized(capacity=True)]
)
def test_numbers_are_checked_when_the_mode_is_made(build):
    """A mode with a number that makes no sense is refused when it is built."""
    with pytest.raises(ValidationError):
        build()


@pytest.mark.covers("N13")
async def test_a_key_that_cannot_be_computed_starts_no_run(make_app):
    """Where the key of an event cannot be computed no run starts, and the receipt says why; other workflows get it."""
    async with make_app(flow(id="keyed"), mode=Serialized(key=lambda event: event.payload["tenant"])) as app:
        await app.runtime.register(flow(id="other"))
        refused, other = (await app.publish("go")).dispatched
        assert (refused.outcome, refused.run_id, other.outcome) == ("rejected", None, "started")
        assert "tenant" in refused.reason
        assert (await app.runtime.wait(other.run_id, timeout_seconds=20)).ok
