"""What a node's definitions cannot carry: it leaves those runs alone, tells of them, and lets them rest.

In a rolling deploy nodes of several versions live side by side, and a run goes on only where its stage is known and the
definition is not older than itself. What a node was refused it does not ask for again for a while, by the shapes of
such runs. A run that no living node can carry stays due and is told of once; one that had been woken is paused again,
with what woke it and an EXPIRED_DEFINITION that `runs show` shows, until a definition comes that can carry it, or
somebody says where it goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piecework.errors import ExpiredDefinitionError, InvalidStateError, NotFoundError, StaleEpochError, describe
from piecework.run.folds import decide_resume, decide_unresume
from piecework.run.folds_nodes import carries, definition_at
from piecework.run.lifecycle import Status
from piecework.run.parts import encode
from piecework.store.items import Resume, Unresume
from piecework.store.records import NodeRow, Run
from piecework.store.verbs.runs import resume, unresume
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from piecework.clock import Clock
    from piecework.run.news import News
    from piecework.store.contract import Store
    from piecework.store.items import Definition

_LOOK_AGAIN_SECONDS = 5.0
_FASTER = (StaleEpochError, InvalidStateError, NotFoundError)
"""What says that somebody else has done something with the run meanwhile."""


class Barred:
    """The runs that one node cannot carry.

    Args:
        store: Open.
        clock: Says when it is time to look again.
        news: Where it is announced that a run is paused again.
    """

    def __init__(self, store: Store, clock: Clock, news: News) -> None:
        self._store = store
        self._clock = clock
        self._news = news
        self._definitions: dict[str, Definition] = {}
        self._shapes: set[str] = set()
        self._told: set[str] = set()
        self._since = 0.0

    def shapes(self, definitions: dict[str, Definition]) -> tuple[str, ...]:
        """The shapes of runs not to be asked for; none where definitions have changed, or it is time to look again."""
        if definitions != self._definitions:
            self._definitions = definitions
            self._shapes.clear()
            self._told.clear()
        if self._shapes and self._clock.monotonic() - self._since >= _LOOK_AGAIN_SECONDS:
            self._shapes.clear()
        return tuple(sorted(self._shapes))

    async def learn(self, runs: Sequence[Run]) -> bool:
        """Takes note of runs that were left alone; answers whether it is of use to ask for others.

        Raises:
            StoreError: The store failed.
        """
        if not runs:
            return False
        living = await self._living()
        fresh = False
        for run in runs:
            shape = shape_of(run)
            there = [definition_at(node, run.workflow_id) for node in living]
            lost = not any(definition is not None and carries(definition, run) for definition in there)
            if lost and run.patched:
                await self._rest(run, expired(run, there))
                fresh = True
                continue
            if lost and shape not in self._told:
                self._told.add(shape)
                signals.emit(
                    signals.NODE_TROUBLE,
                    level="warning",
                    what="runs wait for a node that can carry them",
                    error=describe(expired(run, there)),
                )
            if shape not in self._shapes:
                self._since = self._clock.monotonic() if not self._shapes else self._since
                self._shapes.add(shape)
                fresh = True
        return fresh

    async def _rest(self, run: Run, error: ExpiredDefinitionError) -> None:
        """Pauses a woken run again that nobody can carry."""
        told = encode(describe(error)).decode()
        item = Unresume(run_id=run.run_id, epoch=run.epoch, due_at=None, error=told, unclaimed=True)
        try:
            await self._store.run(unresume, item, decide_unresume, self._clock.now())
        except _FASTER as failure:
            signals.emit(signals.RUN_LOST, level="debug", error=failure.message)
            return
        signals.emit(signals.NODE_TROUBLE, level="warning", what="a run is paused again", error=describe(error))
        self._news.announce(run.run_id, Status.PAUSED)
        # A node that came between our look and our write has not found it resting.
        for node in await self._living():
            definition = definition_at(node, run.workflow_id)
            if definition is not None and carries(definition, run):
                await self._rouse(run)
                return

    async def rouse(self, definitions: Mapping[str, Definition]) -> int:
        """Wakes the runs that rest for want of a definition which is here now; answers how many.

        Raises:
            StoreError: The store failed.
        """
        if not definitions:
            return 0
        resting: list[Run] = await self._store.read("resting_runs", {}, Run)
        roused = 0
        for run in resting:
            definition = definitions.get(f"{run.kind}:{run.workflow_id}")
            if definition is not None and carries(definition, run):
                await self._rouse(run)
                roused += 1
        return roused

    async def _rouse(self, run: Run) -> None:
        try:
            item = Resume(run_id=run.run_id, reason="again")
            await self._store.run(resume, item, decide_resume, self._clock.now())
        except _FASTER as failure:
            signals.emit(signals.RUN_LOST, level="debug", error=failure.message)

    async def _living(self) -> list[NodeRow]:
        living: list[NodeRow] = await self._store.read("living_nodes", {"now": self._clock.now()}, NodeRow)
        return living


def shape_of(run: Run) -> str:
    """What of a run decides whether a definition can carry it, and whether it was woken; as `due_runs` spells it."""
    version = run.version or ""
    lengths = [f"{len(name)}:{name}" for name in (run.workflow_id, run.trigger_id)]
    return f"{run.patched}:{''.join(lengths)}{len(version)}:{version}{run.stage or ''}"


def expired(run: Run, definitions: Iterable[Definition | None]) -> ExpiredDefinitionError:
    """The error of a run that none of the definitions there are can carry: what it needs, what there is, what to do."""
    have = [definition for definition in definitions if definition is not None]
    stages = [stage for definition in have for stage in definition.stages.get(run.trigger_id, ())]
    versions = sorted({definition.version or "none" for definition in have})
    there = (
        f"there {'are versions' if len(versions) > 1 else 'is version'} {', '.join(versions)}"
        if have
        else "there is none"
    )
    if stages:
        there += f" with the stages {', '.join(dict.fromkeys(stages))}"
    place = "before its first stage" if run.stage is None else f"at stage {run.stage!r}"
    return ExpiredDefinitionError(
        f"run {run.run_id} of workflow {run.workflow_id!r}, version {run.version or 'none'}, stands {place} of trigger "
        f"{run.trigger_id!r}, and no living node has a definition that can carry it: {there}. Start a node that has, "
        f"or say where it goes on: `piecework runs resume {run.run_id} --at STAGE`",
        run_id=run.run_id,
        workflow_id=run.workflow_id,
        stage=run.stage,
        version=run.version,
    )
