"""Modes of one run at a time: what becomes of an event while that run is live."""

from __future__ import annotations

import asyncio

import pytest

from piecework import Exclusive, Serialized, SingletonLoop, Stage, WaitFor, Workflow
from piecework.errors import ValidationError

from .flows import Gate, ended, flow, paused, run_id_of

LIMIT = 20


class Overlap:
    """A step that counts how many of it are under way, and waits to be let go."""

    def __init__(self):
        self.gate, self.now, self.most, self.seen = Gate(), 0, 0, []

    async def __call__(self, ctx):
        self.now += 1
        self.most = max(self.most, self.now)
        self.seen.append(ctx.state.get("n"))
        try:
            await self.gate(ctx)
        finally:
            self.now -= 1


async def publish(app, n):
    """What became of the n-th event at the one trigger."""
    (result,) = (await app.publish("go", {"n": n})).dispatched
    return result


async def busy(app, step):
    """The run of the first event, which is under way."""
    first = await publish(app, 1)
    await asyncio.wait_for(step.gate.reached.get(), LIMIT)
    return first.run_id


def two_stages(step, seen):
    """A workflow whose first stage is a step and whose second keeps the state."""

    async def look(ctx):
        seen.append(dict(ctx.state))

    return Workflow("flow", on="go", stages=[Stage("first", steps=[step]), Stage("second", steps=[look])])


@pytest.mark.covers("R61", "R62")
async def test_a_singleton_drops_what_comes_while_it_is_busy(make_app):
    """One run is live; an event meanwhile is dropped without a run, and the live run's state does not change."""
    step = Overlap()
    async with make_app(flow(step), mode=SingletonLoop()) as app:
        run_id = await busy(app, step)
        before = await app.runtime.state(run_id)
        results = [await publish(app, n) for n in (2, 3)]
        assert [(r.outcome, r.reason, r.run_id) for r in results] == [("dropped", "busy", None)] * 2
        assert await app.runtime.state(run_id) == before
        step.gate.open.set()
        assert (await app.runtime.wait(run_id, timeout_seconds=LIMIT)).ok
        assert len(await app.runtime.list_all_runs()) == 1
        assert (await ended(app, await app.publish("go", {"n": 4}))).ok
    assert step.most == 1


@pytest.mark.covers("R63")
async def test_a_signal_reaches_the_live_run(make_app):
    """With `signal` the live run's next state has the event's payload, and no run is made."""
    step, seen = Overlap(), []
    async with make_app(two_stages(step, seen), mode=SingletonLoop(on_busy="signal")) as app:
        run_id = await busy(app, step)
        result = await publish(app, 2)
        assert (result.outcome, result.run_id) == ("signalled", run_id)
        step.gate.open.set()
        assert (await app.runtime.wait(run_id, timeout_seconds=LIMIT)).ok
        assert len(await app.runtime.list_all_runs()) == 1
    assert seen[0]["n"] == 2


async def test_a_mapper_makes_the_signal(make_app):
    """What `mapper` makes of the event is what the live run gets; one that raises rejects the event, which is told."""
    step, seen = Overlap(), []

    def mapper(event):
        return {"last": 10 // event.payload["n"]}

    mode = SingletonLoop(on_busy="signal", mapper=mapper)
    async with make_app(two_stages(step, seen), mode=mode) as app:
        run_id = await busy(app, step)
        assert (await publish(app, 5)).outcome == "signalled"
        assert (await publish(app, 0)).outcome == "rejected"
        step.gate.open.set()
        assert (await app.runtime.wait(run_id, timeout_seconds=LIMIT)).ok
    assert (seen[0]["n"], seen[0]["last"]) == (1, 2)


async def test_a_signal_survives_a_restart(make_app):
    """A signal that was acknowledged is in the run's state when the node has been started again."""
    step, seen = Overlap(), []
    async with make_app(two_stages(step, seen), mode=SingletonLoop(on_busy="signal")) as app:
        run_id = await busy(app, step)
        assert (await publish(app, 2)).outcome == "signalled"
        await app.runtime.stop(grace_seconds=0)
    step.gate.open.set()
    async with make_app(two_stages(step, seen), mode=SingletonLoop(on_busy="signal")) as app:
        assert (await app.runtime.wait(run_id, timeout_seconds=LIMIT)).ok
    assert seen[0]["n"] == 2


@pytest.mark.covers("R64")
async def test_replace_aborts_the_live_run_and_then_starts_the_newest(make_app):
    """With `replace` the live run is aborted, the newest event's run starts when it is gone, and no two overlap."""
    step = Overlap()
    async with make_app(flow(step), mode=SingletonLoop(on_busy="replace")) as app:
        run_id = await busy(app, step)
        results = [await publish(app, n) for n in (2, 3, 4)]
        assert results[0].active_run_id == run_id
        step.gate.open.set()
        assert (await app.runtime.wait(run_id, timeout_seconds=LIMIT)).error.code == "ABORTED"
        ends = [await app.runtime.wait(r.run_id, timeout_seconds=LIMIT) for r in results if r.run_id]
        assert [end.ok for end in ends] == [False, False, True]
    # One in between may have begun, where the first was gone in time; it was replaced in its turn.
    assert (step.most, step.seen[0], step.seen[-1]) == (1, 1, 4)


@pytest.mark.covers("E28")
async def test_replace_ends_a_paused_run_at_once(make_app):
    """A paused run that is replaced ends with the event that replaces it, and that event's run starts at once."""
    waits = Workflow("flow", on="go", stages=[Stage("ask", wait=WaitFor("yes"))])
    async with make_app(waits, mode=SingletonLoop(on_busy="replace")) as app:
        first = await paused(app, await app.publish("go"))
        (result,) = (await app.publish("go")).dispatched
        assert result.outcome == "replaced"
        assert (await app.runtime.wait(first, timeout_seconds=LIMIT)).error.code == "ABORTED"
        assert (await app.runtime.wait(result.run_id, until="paused", timeout_seconds=LIMIT)).ok


@pytest.mark.covers("R65", "R66")
async def test_exclusive_rejects_loudly(make_app):
    """One run is live; an event meanwhile is rejected with that run's id, and the run goes on untouched."""
    step = Overlap()
    async with make_app(flow(step), mode=Exclusive()) as app:
        run_id = await busy(app, step)
        result = await publish(app, 2)
        assert (result.outcome, result.reason, result.active_run_id) == ("rejected", "BUSY", run_id)
        step.gate.open.set()
        assert (await app.runtime.wait(run_id, timeout_seconds=LIMIT)).ok
        assert len(await app.runtime.list_all_runs()) == 1
    assert step.most == 1


@pytest.mark.covers("R67")
async def test_of_five_events_the_fifth_runs_next(make_app):
    """With `queue_single` exactly the last of the events that come while a run is live runs next."""
    step = Overlap()
    async with make_app(flow(step), mode=Exclusive(on_busy="queue_single")) as app:
        run_id = await busy(app, step)
        results = [await publish(app, n) for n in range(2, 7)]
        assert [result.outcome for result in results] == ["queued"] * 5
        step.gate.open.set()
        ends = [await app.runtime.wait(result.run_id, timeout_seconds=LIMIT) for result in results]
        assert [end.ok for end in ends] == [False] * 4 + [True]
        assert {end.error.code for end in ends[:4]} == {"ABORTED"}
        assert (await app.runtime.wait(run_id, timeout_seconds=LIMIT)).ok
    assert (step.seen, step.most) == ([1, 6], 1)


@pytest.mark.covers("E33")
async def test_no_capacity_is_no_queue(make_app, gate):
    """Capacity 0 means that nothing waits: not that anything does."""
    async with make_app(flow(gate), mode=Serialized(capacity=0)) as app:
        outcomes = [(await publish(app, n)).outcome for n in range(3)]
        gate.open.set()
    assert outcomes == ["started", "dropped", "dropped"]


async def test_keys_keep_runs_apart(make_app):
    """Modes of one run at a time hold for each key by itself."""
    step = Overlap()
    mode = Exclusive(key=lambda event: str(event.payload["n"] % 2))
    async with make_app(flow(step), mode=mode) as app:
        receipts = [await app.publish("go", {"n": n}) for n in range(4)]
        assert [r.dispatched[0].outcome for r in receipts] == ["started", "started", "rejected", "rejected"]
        step.gate.open.set()
        for receipt in receipts[:2]:
            assert (await app.runtime.wait(run_id_of(receipt), timeout_seconds=LIMIT)).ok


@pytest.mark.covers("E29")
async def test_a_storm_of_replacements_leaves_the_newest(make_app):
    """Of many events that replace a run only the newest one's run follows; the others end without having begun."""
    step = Overlap()
    async with make_app(flow(step), mode=SingletonLoop(on_busy="replace")) as app:
        await busy(app, step)
        receipts = await asyncio.gather(*(app.publish("go", {"n": n}) for n in range(2, 202)))
        step.gate.open.set()
        runs = [run_id for r in receipts for run_id in [r.dispatched[0].run_id] if run_id]
        ends = [await app.runtime.wait(run_id, timeout_seconds=LIMIT) for run_id in runs]
    assert sum(end.ok for end in ends) == 1
    assert step.most == 1
    assert len(step.seen) <= 3


@pytest.mark.parametrize("mode", ["serialized", Serialized, 3])
async def test_what_is_no_mode_is_refused_where_it_is_given(make_app, mode):
    """`mode=` takes one of the four modes, made: neither its name nor its class."""
    with pytest.raises(ValidationError, match=r"Serialized\(…\)"):
        make_app(flow(), mode=mode)
    async with make_app() as app:
        with pytest.raises(ValidationError):
            await app.runtime.register(flow(), mode=mode)


async def test_a_key_may_be_a_number(make_app, gate):
    """`key=` may answer a number, as ids usually are."""
    async with make_app(flow(gate), mode=Exclusive(key=lambda event: event.payload["n"])) as app:
        assert [(await publish(app, n)).outcome for n in (7, 7, 8)] == ["started", "rejected", "started"]
        gate.open.set()


@pytest.mark.parametrize(
    "make",
    [
        lambda: SingletonLoop(on_busy="reject"),
        lambda: Exclusive(on_busy="drop"),
        lambda: SingletonLoop(mapper=lambda event: {}),
        lambda: SingletonLoop(on_busy="signal", mapper="payload"),
    ],
)
def test_a_mode_that_cannot_be_is_refused_where_it_is_made(make):
    """An option that a mode does not have is refused when it is built."""
    with pytest.raises(ValidationError):
        make()
