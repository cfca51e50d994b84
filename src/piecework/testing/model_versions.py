"""The rules about versions: nodes that take only what their definitions can carry, and runs that rest without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from piecework.run import folds
from piecework.store import items
from piecework.store.verbs import runs
from piecework.store.verbs.claim import claim, take_over
from piecework.testing import model_draws as draws
from piecework.testing.model_beside import Beside

if TYPE_CHECKING:
    from piecework.testing.model_world import ModelRun

_TRIGGERS = ("t0", "t1")
_LIMIT = 100


class Versioned(Beside):
    """Claims of nodes that say what they have of a workflow."""

    def definition(self, version: str, triggers: int, everything: bool) -> items.Definition:
        """What a node has: of some triggers all stages that there are, or hardly any."""
        known = {run.stage for run in self.model.runs.values() if run.stage is not None}
        stages = tuple(sorted(known)) if everything else ("elsewhere",)
        return items.Definition(version=version, stages=dict.fromkeys(_TRIGGERS[:triggers], stages))

    @rule(
        node=st.sampled_from(draws.NODES),
        workflow=st.sampled_from(draws.WORKFLOWS),
        version=draws.versions,
        triggers=st.integers(0, 2),
        everything=st.booleans(),
        orphans=st.booleans(),
    )
    def claim_as(self, node: str, workflow: str, version: str, triggers: int, everything: bool, orphans: bool) -> None:
        """A node takes what its definition of a workflow can carry; what dead ones had and it cannot is nobody's."""
        told = {f"workflow:{workflow}": self.definition(version, triggers, everything)}
        item: items.Claim | items.TakeOver
        if orphans:
            item = items.TakeOver(owner=node, limit=_LIMIT, known=draws.KNOWN, definitions=told)
        else:
            item = items.Claim(owner=node, limit=_LIMIT, known=draws.KNOWN, definitions=told)
        self.act(take_over if orphans else claim, [item], folds.decide_claim, self._as_versions_say)

    def _as_versions_say(
        self, item: items.Claim | items.TakeOver, found: list[items.Claimed | items.LeftAlone]
    ) -> list[items.Claimed | items.LeftAlone]:
        if isinstance(item, items.Claim):
            asked = self.model.due_for(item.known, self.now)
        else:
            asked = self.model.orphans(item.owner, item.known, self.now)
        fits = {run.run_id: self.model.carried(run, item.definitions) for run in asked}
        told = {entry.run.run_id: isinstance(entry, items.Claimed) for entry in found}
        assert told == fits, f"the store hands over {told}, the model {fits}"
        for run in asked:
            if fits[run.run_id]:
                self.model.take(run, item.owner, self.now)
                self.model.under(run, item.definitions)
            else:
                self.model.leave(run, self.now)
        return found

    def stranded(self) -> list[ModelRun]:
        """The woken runs that nobody has."""
        return self.those(lambda run: run.status == "running" and run.owner is None and "patch" in run.values)

    @precondition(lambda self: self.stranded())
    @rule(pick=draws.picks, again=st.booleans())
    def rest(self, pick: int, again: bool) -> None:
        """A woken run that no definition can carry pauses again, until there is one."""
        found = self.stranded()
        run = found[pick % len(found)]
        item = items.Unresume(run_id=run.run_id, epoch=run.epoch, due_at=None, error="{}", unclaimed=True)
        self.act(runs.unresume, [item], folds.decide_unresume, self.at_once(self.model.unresume), echo=True)
        if again:
            self.rouse(0)

    def resting(self) -> list[ModelRun]:
        """The paused runs that have been woken already."""
        return self.those(lambda run: run.status == "paused" and "patch" in run.values)

    @precondition(lambda self: self.resting())
    @rule(pick=draws.picks)
    def rouse(self, pick: int) -> None:
        """A definition is back, and whoever waits for it goes on with what woke it."""
        found: list[Any] = self.resting()
        run = found[pick % len(found)]
        item = items.Resume(run_id=run.run_id, reason="again")
        self.act(runs.resume, [item], folds.decide_resume, self.at_once(self.model.resume))
