"""A store beside a plain model of it: random histories of verbs, after each of which both say the same.

    from hypothesis.stateful import run_state_machine_as_test
    from piecework.testing.model import store_machine

    async def opened():
        store = MyStore(...)
        await store.open()
        return store

    def test_model():
        run_state_machine_as_test(store_machine(opened))

`opened` is called for each history; the store has to be empty. Every outcome is compared with the model's, and at every
fourth step, and at the end, all rows are. A history that fails is shrunk: nothing in it is random but what Hypothesis
draws.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from msgspec.structs import replace

from piecework.clock import SECOND
from piecework.errors import StaleEpochError
from piecework.run import folds, folds_events, folds_nodes
from piecework.store import items
from piecework.store.contract import Failure
from piecework.store.records import NodeRow
from piecework.store.verbs import nodes, retention, runs
from piecework.store.verbs.accept import accept
from piecework.store.verbs.claim import claim, take_over
from piecework.store.verbs.dispatch import dispatch
from piecework.testing import model_draws as draws
from piecework.testing.model_beside import in_words
from piecework.testing.model_look import plain
from piecework.testing.model_versions import Versioned
from piecework.testing.model_world import ENDED, ModelRun, Refused, data
from piecework.testing.verbs import decide_accept, job

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from piecework.store.contract import Store
    from piecework.store.records import Wait

_LEASE = 20 * SECOND
_RETENTION = {"runs": retention.forget_runs, "ids": retention.forget_ids, "events": retention.forget_events}
_WRITES = ("commit", "settle", "told", "cleaned", "release", "unresume", "register", "append")


def store_machine(open_store: Callable[[], Awaitable[Store]]) -> type[RuleBasedStateMachine]:
    """The machine for one engine.

    Args:
        open_store: Opens an empty store; called once for each history, on an event loop of its own.
    """

    class StoreMachine(_StoreMachine):
        """The machine, with a store of this engine."""

        def opened(self) -> Awaitable[Store]:
            """The store of this history."""
            return open_store()

    return StoreMachine


class _StoreMachine(Versioned):
    """The rules."""

    @initialize(one=draws.modes, other=draws.modes)
    def registered(self, one: int, other: int) -> None:
        """Two workflows are there with their modes, and two nodes that live."""
        for node in draws.NODES:
            self.renew(node, stays=True)
        self.modes = dict(zip(draws.WORKFLOWS, (one, other), strict=True))

    # -- events ------------------------------------------------------------------------------------------------------

    @rule(drawn=draws.events)
    def publish(self, drawn: list[draws.DrawnEvent]) -> None:
        """Events come in, in one batch."""
        batch = []
        for event in drawn:
            again = self.event_ids[-event.again] if 0 < event.again <= len(self.event_ids) else None
            known = {} if event.known is None else dict.fromkeys(draws.WORKFLOWS, event.known)
            item = self.event(event.type, event.payload, event.space, event.routes, event_id=again)
            batch.append(replace(item, known=known))
        self.act(accept, batch, decide_accept, self._accepted)

    @precondition(lambda self: self.awaited())
    @rule(chosen=draws.several, routes=draws.routes)
    def publish_awaited(self, chosen: list[int], routes: tuple[tuple[str, str], ...]) -> None:
        """Events come in that runs wait for, the first of which may meet triggers too."""
        awaited = self.awaited()
        self.publish_for([awaited[pick % len(awaited)] for pick in chosen], routes)

    def publish_for(self, awaited: Sequence[Wait], routes: tuple[tuple[str, str], ...] = ()) -> None:
        """Events come in, one for each of some waits."""
        batch: list[items.Accept] = []
        for wait in awaited:
            clauses = msgspec.json.decode(wait.clauses)
            payload = {name: 9 if op != "==" else value for name, op, value in clauses if value is not False}
            batch.append(self.event(wait.event_type, payload, None, () if batch else routes))
        self.act(accept, batch, decide_accept, self._accepted)

    @rule(at=draws.targets, count=st.integers(1, 2), node=st.sampled_from(draws.NODES))
    def start(self, at: tuple[str, str], count: int, node: str) -> None:
        """Events come in at one slot, and a node takes what may start."""
        batch = [self.event("placed", {}, None, (at,)) for _ in range(count)]
        self.act(accept, batch, decide_accept, self._accepted)
        self.claim(node, draws.EVERYTHING)

    def _accepted(self, item: items.Accept, found: items.Accepted | Failure) -> items.Accepted:
        if isinstance(found, Failure):
            raise found.error
        expected = self.model.accept(item, found.seq, self.now)
        if not expected.duplicate:
            assert found.seq > self.last_seq, "events are numbered in the order of acceptance"
            self.last_seq = found.seq
        return expected

    @rule(
        what=st.sampled_from(("routes", "mode", "mode at once", "gone")),
        workflow=st.sampled_from(draws.WORKFLOWS),
        version=draws.versions,
        types=st.sets(st.sampled_from(draws.TYPES)),
        mode=draws.modes,
    )
    def register(self, what: str, workflow: str, version: str, types: set[str], mode: int) -> None:
        """A workflow is registered for event types or with another mode, or it is there no more.

        Its slots hear of a mode at once, or with their next event.
        """
        if what == "gone":
            gone = items.RetireWorkflow(workflow_id=workflow)
            self.act(nodes.retire_workflow, [gone], folds_nodes.no_decision, self._retired)
        elif what == "routes":
            item = items.RegisterRoutes(workflow_id=workflow, version=version, event_types=tuple(sorted(types)))
            expect = self.at_once(self.model.register_routes)
            self.act(nodes.register_routes, [item], folds_nodes.decide_routes, expect, echo=True)
        else:
            self.modes[workflow], self.same_modes = mode, False
            if what == "mode at once":
                like = items.RaiseLimit(like=draws.slot_like(workflow, "", mode))
                self.act(nodes.raise_limit, [like], folds_nodes.decide_raise_limit, self._raised)

    def _retired(self, item: items.RetireWorkflow, _: Any) -> items.Retired:
        return items.Retired(nodes=(), dropped=self.model.retire(item.workflow_id))

    def pending(self) -> list[tuple[int, str]]:
        """The deliveries that nobody has decided."""
        return [key[:2] for key, told in self.model.deliveries.items() if told[0] == "pending"]

    @precondition(lambda self: self.pending())
    @rule(chosen=draws.several, version=st.none() | draws.versions, routes=draws.routes)
    def dispatch(self, chosen: list[int], version: str | None, routes: tuple[tuple[str, str], ...]) -> None:
        """A node of some version (None: the newest) decides about pending events."""
        pending = self.pending()
        batch = []
        for pick in chosen:
            seq, workflow = pending[pick % len(pending)]
            newest = self.model.routes.get(workflow, ("1", {}))[0]
            mine = self.routes([(workflow, key) for _, key in routes])
            batch.append(items.Dispatch(event_seq=seq, workflow_id=workflow, version=version or newest, routes=mine))
        self.act(dispatch, batch, folds_events.decide_dispatch, self.at_once(self.model.dispatch))

    def _raised(self, item: items.RaiseLimit, _: Any) -> items.Raised:
        return items.Raised(started=self.model.raise_limit(item.like, self.now), last=None)

    # -- nodes -------------------------------------------------------------------------------------------------------

    @rule(node=st.sampled_from(draws.NODES), stays=st.booleans())
    def renew(self, node: str, stays: bool) -> None:
        """A node says that it lives, or that it stops."""
        if stays:
            row = NodeRow(node, 1, "host", "1", b"[]", self.now, self.now, self.now + _LEASE)
            self.model.nodes[node] = self.now + _LEASE
            self.act(nodes.renew, [items.Renew(node=row)], folds_nodes.no_decision, lambda *_: True)
        else:
            self.model.nodes.pop(node, None)
            self.act(nodes.leave, [items.Leave(node_id=node)], folds_nodes.no_decision, lambda *_: True)

    @rule(node=st.sampled_from(draws.NODES), asked=draws.claims)
    def claim(self, node: str, asked: tuple[int, tuple[str, ...]]) -> None:
        """A node takes what is due.

        One that asks for little may be shown each space once in which there is nothing.
        """
        limit, known = asked
        item = items.Claim(owner=node, limit=limit, known=known)
        for _ in draws.SPACES:
            ready = self.model.due_for(known, self.now)
            (found,) = self.act(claim, [item], folds.decide_claim, self._claimed)
            if found or not ready:
                return
        raise AssertionError(f"nobody gets the runs that are due: {sorted(run.run_id for run in ready)}")

    @precondition(lambda self: self.those(lambda run: run.owner is not None))
    @rule(node=st.sampled_from(draws.NODES), limit=st.sampled_from((100, 1)))
    def take_over(self, node: str, limit: int) -> None:
        """A node takes what dead ones had."""
        item = items.TakeOver(owner=node, limit=limit, known=draws.KNOWN)
        self.act(take_over, [item], folds.decide_claim, self._taken_over)

    def _claimed(self, item: items.Claim, found: list[items.Claimed]) -> Any:
        """Which of the due runs are taken is the store's choice, as long as they are the longest due of their space."""
        ready = {run.run_id: run for run in self.model.due_for(item.known, self.now)}
        mine = [entry.run.run_id for entry in found]
        said = f"{sorted(ready)} are due, it took {mine}"
        assert len(set(mine)) == len(mine) <= item.limit, said
        assert ready.keys() >= set(mine), said
        assert item.limit < len(draws.SPACES) or len(mine) == min(item.limit, len(ready)), said
        for run in (ready[run_id] for run_id in mine):
            for left in (ready[run_id] for run_id in ready.keys() - set(mine)):
                if left.space == run.space:
                    assert _turn(run, left) <= _turn(left, run), f"{left.run_id} was due before {run.run_id}"
        return self._take([ready[run_id] for run_id in mine], item.owner, found)

    def _taken_over(self, item: items.TakeOver, found: list[items.Claimed]) -> Any:
        orphans = self.model.orphans(item.owner, item.known, self.now)[: item.limit]
        return self._take(orphans, item.owner, found)

    def _take(self, taken: list[ModelRun], owner: str, found: list[items.Claimed]) -> Any:
        """What is handed over with runs: told like the store's, which has the whole rows."""
        expected = []
        for run in taken:
            self.model.take(run, owner, self.now)
            signals = sorted(run.signals.items())
            expected.append([run, run.event if run.event in self.model.events else None, run.values, signals])
        told = [[entry.run, entry.event and entry.event.seq, entry.values, entry.signals] for entry in found]
        assert plain(told) == plain(expected), f"the store hands over {told}, the model {expected}"
        return found

    # -- owners ------------------------------------------------------------------------------------------------------

    def write_all(self, kind: str, chosen: list[ModelRun], drawn: list[draws.DrawnEnd], *, echo: bool = False) -> None:
        """Writes of runs' owners, in one batch."""
        ends = [drawn[number % len(drawn)] for number in range(len(chosen))]
        writes = [self.written(kind, run, run.epoch, end) for run, end in zip(chosen, ends, strict=True)]
        if writes:
            verb, _, decide, expect = writes[0]
            self.act(verb, [write[1] for write in writes], decide, self.at_once(expect), echo=echo)

    @precondition(lambda self: self.held())
    @rule(chosen=draws.several, drawn=st.lists(draws.ends, min_size=1, max_size=3))
    def commit_stage(self, chosen: list[int], drawn: list[draws.DrawnEnd]) -> None:
        """Stages end: their runs go on, pause, or are deferred."""
        self.write_all("commit", _some(self.held(), chosen), drawn, echo=True)

    @precondition(lambda self: self.held())
    @rule(chosen=draws.several, drawn=st.lists(draws.pauses, min_size=1, max_size=3))
    def pause(self, chosen: list[int], drawn: list[draws.DrawnEnd]) -> None:
        """Runs pause, and wait."""
        self.write_all("commit", _some(self.held(), chosen), drawn, echo=True)

    @precondition(lambda self: self.held())
    @rule(pick=draws.picks, wait=draws.waits, cancel=st.sampled_from(("none", "one", "all")))
    def register_waits(self, pick: int, wait: draws.DrawnWait, cancel: str) -> None:
        """A running run waits for something, and perhaps no longer for something else."""
        run = _some(self.held(), [pick])[0]
        known = sorted({key[0] for key in run.waits})[:1] if cancel == "one" else []
        new = self.waits(run.run_id, wait) if cancel != "all" else ()
        item = items.Register(
            run_id=run.run_id, epoch=run.epoch, waits=new, cancel=None if cancel == "all" else tuple(known)
        )
        self.act(
            runs.register_waits,
            [item],
            folds.decide_register,
            self.at_once(self.model.register_waits),
            echo=True,
        )

    @precondition(lambda self: self.held())
    @rule(chosen=draws.few, drawn=draws.ends, clean=st.booleans())
    def settle(self, chosen: list[int], drawn: draws.DrawnEnd, clean: bool) -> None:
        """Runs end, and may be clean soon."""
        ending = _some(self.held(), chosen)
        self.write_all("settle", ending, [drawn], echo=True)
        if clean:
            self.write_all("cleaned", ending, [drawn])

    def unclean(self) -> list[ModelRun]:
        """The ended runs that somebody has still to clean."""
        return self.those(lambda run: run.status in ENDED and run.owner is not None)

    @precondition(lambda self: self.unclean())
    @rule(chosen=draws.several, drawn=draws.ends)
    def hear(self, chosen: list[int], drawn: draws.DrawnEnd) -> None:
        """The ends of runs have been heard of."""
        self.write_all("told", _some(self.unclean(), chosen), [drawn])

    @precondition(lambda self: self.unclean())
    @rule(chosen=draws.several, drawn=draws.ends)
    def clean(self, chosen: list[int], drawn: draws.DrawnEnd) -> None:
        """Ended runs are clean."""
        self.write_all("cleaned", _some(self.unclean(), chosen), [drawn])

    @precondition(lambda self: self.those(lambda run: run.owner is not None))
    @rule(pick=draws.picks, drawn=draws.ends)
    def release(self, pick: int, drawn: draws.DrawnEnd) -> None:
        """A run is given back."""
        self.write_all("release", _some(self.those(lambda run: run.owner is not None), [pick]), [drawn])

    def resuming(self) -> list[ModelRun]:
        """The runs that somebody has and that are being resumed."""
        return [run for run in self.held() if "patch" in run.values]

    @precondition(lambda self: self.resuming())
    @rule(chosen=draws.several, drawn=draws.ends)
    def unresume(self, chosen: list[int], drawn: draws.DrawnEnd) -> None:
        """Runs cannot go on after all."""
        self.write_all("unresume", _some(self.resuming(), chosen), [drawn], echo=True)

    # -- calls from outside ------------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.runs)
    @rule(pick=draws.picks, token=st.booleans(), stage=st.none() | st.just("elsewhere"))
    def resume(self, pick: int, token: bool, stage: str | None) -> None:
        """Somebody resumes a run, which is a paused one if there is one."""
        run = _some(self.paused() or list(self.model.runs.values()), [pick])[0]
        self.resume_it(run, token=self.name("k") if token else None, stage=stage)

    def resume_it(self, run: ModelRun, *, token: str | None = None, stage: str | None = None) -> None:
        """Somebody resumes this run."""
        item = items.Resume(run_id=run.run_id, reason="manual", patch={"by": "hand"}, stage=stage, token=token)
        expect = self.at_once(self.model.resume)
        self.act(runs.resume, [item], folds.decide_resume, expect, echo=token is not None)

    def paused(self) -> list[ModelRun]:
        """The paused runs."""
        return self.those(lambda run: run.status == "paused")

    @precondition(lambda self: self.paused())
    @rule(pick=draws.picks, event=st.booleans(), node=st.sampled_from(draws.NODES))
    def wake(self, pick: int, event: bool, node: str) -> None:
        """A paused run is woken by an event or by hand, and a node takes it."""
        run = _some(self.paused(), [pick])[0]
        if event and run.waits:
            self.publish_for([next(iter(run.waits.values()))])
        else:
            self.resume_it(run)
        self.claim(node, draws.EVERYTHING)

    @precondition(lambda self: self.model.runs)
    @rule(chosen=draws.several)
    def signal(self, chosen: list[int]) -> None:
        """Somebody sends patches to runs."""
        batch = [
            items.SendSignal(run_id=run.run_id, patch=data({"signal": run.visit}), token=self.name("k"))
            for run in _some(list(self.model.runs.values()), chosen)
        ]
        self.act(runs.signal, batch, folds.decide_signal, self.at_once(self.model.send), echo=True)

    @precondition(lambda self: self.model.runs)
    @rule(chosen=draws.few, dropping=st.booleans())
    def abort(self, chosen: list[int], dropping: bool) -> None:
        """Somebody ends runs, or drops those that wait."""
        batch = [
            items.Abort(run_id=run.run_id, reason="no longer needed", token=self.name("k"), dropping=dropping)
            for run in _some(list(self.model.runs.values()), chosen)
        ]
        self.act(runs.abort, batch, folds.decide_abort, self.at_once(self.model.abort), echo=True)

    @rule(
        at=draws.targets,
        node=st.sampled_from(draws.NODES),
        pause=draws.pauses,
        event=st.booleans(),
        then=st.sampled_from(("unresume", "commit", "register", "settle", "release")),
        drawn=draws.ends,
    )
    def story(
        self, at: tuple[str, str], node: str, pause: draws.DrawnEnd, event: bool, then: str, drawn: draws.DrawnEnd
    ) -> None:
        """A run starts, pauses, is woken, and goes on, as far as others let it."""
        self.start(at, 1, node)
        run = next(iter(reversed(self.held())), None)
        if run is not None:
            self.write_all("commit", [run], [pause])
        if run is not None and run.status == "paused":
            self.wake(list(self.paused()).index(run), event, node)
            self.write_all(then, [run], [drawn])

    @rule(moment=draws.moments)
    def pass_time(self, moment: int) -> None:
        """Time passes, and a node looks at the clock."""
        self.verbs.now += moment
        self.act(runs.due, [None], folds.decide_resume, lambda *_: self.model.expire(self.now))

    @rule(
        drawn=st.lists(
            st.tuples(st.sampled_from((None, "first", "second", "again")), st.none() | draws.delays),
            min_size=1,
            max_size=2,
        )
    )
    def enqueue(self, drawn: list[tuple[str | None, int | None]]) -> None:
        """Jobs are asked for, some of which may happen once only."""
        batch = [
            replace(
                job(self.run_name(), due_at=None if delay is None else self.now + delay),
                occurrence=occurrence,
                again=occurrence == "again",
            )
            for occurrence, delay in drawn
        ]
        self.act(runs.enqueue, batch, folds.decide_enqueue, self.at_once(self.model.enqueue))

    # -- what must change nothing ------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.runs)
    @rule(pick=draws.picks, kind=st.sampled_from(_WRITES), late=st.booleans(), drawn=draws.ends)
    def write(self, pick: int, kind: str, late: bool, drawn: draws.DrawnEnd) -> None:
        """Somebody writes who had a run before: refused, whatever it is. Or whoever has it, be it the time or not."""
        run = _some(list(self.model.runs.values()), [pick])[0]
        if not late:
            self.write_all(kind, [run], [drawn])
            return
        verb, item, decide, _ = self.written(kind, run, run.epoch - 1, drawn)
        self.act(verb, [item], decide, _stale)
        self.look()

    @precondition(lambda self: self.last is not None)
    @rule()
    def repeat(self) -> None:
        """The reply to the last verb was lost, and it comes again: harmless."""
        assert self.last is not None
        verb, batch, decide, expect, echo, first = self.last
        before = copy.deepcopy(self.model)
        found = self.act(verb, batch, decide, expect)
        if echo and not any(isinstance(outcome, Failure) for outcome in first):
            assert in_words(found) == in_words(first), f"{verb.__name__} said {first}, and when it was repeated {found}"
        if verb not in {claim, take_over}:  # those take what there is more
            assert self.model == before, f"a repeated {verb.__name__} changes something"
        self.last = (verb, batch, decide, expect, echo, first)
        self.look()

    @rule(kind=st.sampled_from((*_RETENTION, "slots")), age=st.sampled_from((-1, SECOND, 7 * SECOND)))
    def forget(self, kind: str, age: int) -> None:
        """What is old goes."""
        item = items.Retain(before=self.now - age)
        if kind == "slots":
            self.act(retention.forget_slots, [item], folds_nodes.no_decision, lambda *_: self.model.forget_slots())
            return
        forgotten = getattr(self.model, f"forget_{kind}")
        self.act(_RETENTION[kind], [item], folds_nodes.no_decision, lambda item, _: forgotten(item.before))


def _some(pool: Sequence[ModelRun], chosen: Sequence[int]) -> list[ModelRun]:
    """Runs of a pool, each once."""
    found = [pool[pick % len(pool)] for pick in chosen]
    return list({run.run_id: run for run in found}.values())


def _turn(run: ModelRun, other: ModelRun) -> tuple[int, int]:
    """When it is a run's turn: in one slot those that are due together go by their places."""
    return run.due or 0, run.place or 0 if run.room is not None and run.room == other.room else 0


def _stale(_item: Any, _found: Any) -> Any:
    raise Refused(StaleEpochError)
