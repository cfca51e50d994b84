"""What a store promises about versions: a node gets the runs that its definitions can carry, and leaves the others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from piecework.errors import InvalidStateError, StaleEpochError
from piecework.run.barred import shape_of
from piecework.run.folds import decide_claim, decide_resume, decide_unresume
from piecework.run.lifecycle import Status
from piecework.store.items import Claim, Claimed, Definition, LeftAlone, Park, Resume, TakeOver, Unresume
from piecework.store.verbs.claim import claim, take_over
from piecework.store.verbs.runs import resume, unresume
from piecework.testing.verbs import KNOWN, WORKFLOW, job, slot, transient, waits

if TYPE_CHECKING:
    from piecework.store.items import Enqueue
    from piecework.store.records import Run
    from piecework.testing.verbs import Verbs

_NAME = f"workflow:{WORKFLOW}"


class VersionPromises:
    """`claim` and `take_over` of nodes that say what they have, and runs that nobody can carry."""

    @pytest.mark.parametrize(
        ("version", "stages", "carried"),
        [
            ("1", ("after",), True),
            ("2", ("before", "after"), True),
            ("#abc", ("after",), True),
            ("0.9", ("after",), False),
            ("2", ("before",), False),
            ("2", None, False),
        ],
    )
    async def test_claim_what_a_definition_carries(
        self, verbs: Verbs, version: str, stages: tuple[str, ...] | None, carried: bool
    ) -> None:
        """A run goes to a node whose definition has its trigger and stage and is not older: that is its version."""
        run = await _woken(verbs)
        there = Definition(version=version, stages={} if stages is None else {run.trigger_id: stages})
        (found,) = await verbs.claim("node-2", definitions={_NAME: there})
        assert isinstance(found, Claimed if carried else LeftAlone)
        assert found.run == await verbs.run(run.run_id)
        if carried:
            assert (found.run.owner, found.run.version) == ("node-2", version)
        else:
            assert found.run == run

    async def test_claim_of_what_has_not_begun(self, verbs: Verbs) -> None:
        """A run without any stage starts under the definition of whoever claims it."""
        await verbs.start(slot())
        (found,) = await verbs.claim(definitions={_NAME: Definition(version="2", stages={"default": ("new",)})})
        assert (found.run.status, found.run.version) == (Status.RUNNING, "2")

    async def test_what_only_ends_goes_to_anybody(self, verbs: Verbs) -> None:
        """A run that was told to end needs no stage: any node of its workflow takes it over."""
        run = await verbs.running(owner="node-0")
        await verbs.abort(run.run_id)
        item = TakeOver(owner="node-2", limit=9, known=KNOWN, definitions=_NOTHING)
        (found,) = await verbs.do(take_over, item, decide_claim)
        assert isinstance(found, Claimed)

    async def test_take_over_of_what_nobody_there_carries(self, verbs: Verbs) -> None:
        """What a dead node had and the next one cannot carry is nobody's, and due; a late write is refused."""
        run = await verbs.running(owner="node-0")
        item = TakeOver(owner="node-2", limit=9, known=KNOWN, definitions=_NOTHING)
        (found,) = await verbs.do(take_over, item, decide_claim)
        assert isinstance(found, LeftAlone)
        assert (found.run.owner, found.run.due_at, found.run.attempt) == (None, verbs.now, run.attempt)
        with pytest.raises(StaleEpochError):
            await verbs.settle(run)
        assert [entry.run.run_id for entry in await verbs.claim("node-3")] == [run.run_id]

    @pytest.mark.parametrize(
        ("trigger", "version", "stage"),
        [
            ("t", "1", "s"),
            ("t", None, None),
            ("1:t", "2:1", "x:y"),
            ("naïve 🦉", "Ⅳ", "Prüfung 🦉"),
            ("a'b\"c\\d", "%_", "\x01\t\n"),
        ],
    )
    async def test_a_barred_shape_is_not_asked_for(
        self, verbs: Verbs, trigger: str, version: str | None, stage: str | None
    ) -> None:
        """A run of a barred shape is passed over, whatever its names are made of; the next one by any other is not."""
        await verbs.enqueue(_at(trigger, version, stage))
        await verbs.enqueue(_at(trigger, version, f"{stage}2"))
        barred, other = await verbs.claim(definitions=_NOTHING)
        shapes = (shape_of(barred.run),)
        item = Claim(owner="node-1", limit=9, known=KNOWN, definitions=_NOTHING, barred=shapes)
        (found,) = await verbs.do(claim, item, decide_claim)
        assert found == other

    async def test_a_woken_run_rests(self, verbs: Verbs) -> None:
        """A woken run that nobody can carry is paused again with its error and its patch, and woken by no clock."""
        run = await _woken(verbs)
        await _rest(verbs, run)
        rests = await verbs.run(run.run_id)
        assert (rests.status, rests.patched, rests.due_at, rests.expires_at) == (Status.PAUSED, 1, None, None)
        assert rests.error == '{"code":"EXPIRED_DEFINITION"}'
        await verbs.do(resume, Resume(run_id=run.run_id, reason="again"), decide_resume)
        (found,) = await verbs.claim()
        assert b'"by":"Ada"' in found.values["patch"]
        assert found.run.error is None

    async def test_a_run_that_somebody_has_does_not_rest(self, verbs: Verbs) -> None:
        """Of a claim and a rest at the same moment one wins; whoever has the run keeps it."""
        run = await _woken(verbs)
        outcomes = await asyncio.gather(verbs.claim("node-2"), _rest(verbs, run), return_exceptions=True)
        now = await verbs.run(run.run_id)
        if outcomes[0]:
            assert isinstance(outcomes[1], StaleEpochError)
            assert (now.owner, now.status) == ("node-2", Status.RUNNING)
        else:
            assert now.status == Status.PAUSED

    async def test_only_what_rests_is_roused(self, verbs: Verbs) -> None:
        """A run that merely waits is not woken because a definition has come."""
        run = await verbs.paused(None, "order.paid")
        with pytest.raises(InvalidStateError):
            await verbs.do(resume, Resume(run_id=run.run_id, reason="again"), decide_resume)

    async def test_a_resume_somewhere_else(self, verbs: Verbs) -> None:
        """A resume that says where goes on there, under any version that has the stage."""
        run = await _woken(verbs)
        await _rest(verbs, run)
        await verbs.resume(run.run_id, {"n": 1}, stage="elsewhere")
        there = Definition(version="0.1", stages={run.trigger_id: ("elsewhere",)})
        (found,) = await verbs.claim(definitions={_NAME: there})
        assert (found.run.stage, found.run.version) == ("elsewhere", "0.1")
        assert b'"by":"Ada"' in found.values["patch"]
        assert b'"n":1' in found.values["patch"]


_NOTHING = {_NAME: Definition(version="9", stages={})}


async def _woken(verbs: Verbs) -> Run:
    run = await verbs.running(transient())
    await verbs.end_stage(run, Park(stage="after", waits=waits(run.run_id, "order.paid")))
    await verbs.resume(run.run_id, {"by": "Ada"})
    return await verbs.run(run.run_id)


async def _rest(verbs: Verbs, run: Run) -> None:
    told = '{"code":"EXPIRED_DEFINITION"}'
    item = Unresume(run_id=run.run_id, epoch=run.epoch, due_at=None, error=told, unclaimed=True)
    await verbs.do(unresume, item, decide_unresume)


def _at(trigger: str, version: str | None, stage: str | None) -> Enqueue:
    made = job()
    run = replace(made.run, kind="workflow", workflow_id=WORKFLOW, trigger_id=trigger, version=version, stage=stage)
    return replace(made, run=run)
