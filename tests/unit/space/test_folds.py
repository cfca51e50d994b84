"""Promises about what becomes of a piece, beyond those of the store's own suite."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from piecework.clock import SECOND
from piecework.run.lifecycle import ENDED
from piecework.space.folds import decide_finish_piece, decide_register_piece, decide_run_piece
from piecework.store.draft import Draft
from piecework.store.items import RegisterPiece, RunPiece
from piecework.store.records import Piece, Run
from piecework.testing.verbs import NOW, piece, piece_end


class Desk:
    """One piece in memory: the folds, and nothing else."""

    def __init__(self):
        self.draft = Draft()
        self.draft.load(Piece, [("acme", "hn")], [])
        self.now = NOW
        self.count = 0

    def fresh(self):
        self.count += 1
        return f"run-{self.count}"

    def register(self, **changes):
        item = RegisterPiece(piece=replace(piece(), **changes), run_id=self.fresh())
        return decide_register_piece(self.draft, item, self.now)

    def run_now(self):
        return decide_run_piece(self.draft, RunPiece(space="acme", piece_id="hn", run_id=self.fresh()), self.now)

    def begin(self):
        """Whatever the node does to the update that is due: the claim."""
        run = self.run
        claimed = replace(run, status="running", owner="n", epoch=run.epoch + 1, due_at=None, started_at=self.now)
        self.draft.put(claimed)
        return claimed

    def finish(self, run, outcome="success", **rest):
        return decide_finish_piece(self.draft, piece_end(run, outcome, next_run_id=self.fresh(), **rest), self.now)

    @property
    def piece(self):
        return self.draft.get(Piece, "acme", "hn")

    @property
    def run(self):
        return self.draft.get(Run, self.piece.run_id)


def test_what_people_wrote_is_not_touched_by_an_update():
    """An update's end changes the observed half of a piece, never the desired one."""
    desk = Desk()
    desk.register()
    desk.draft.put(replace(desk.piece, desired="paused", desired_reason="holiday"))
    desk.finish(desk.begin(), "failed")
    assert (desk.piece.desired, desk.piece.desired_reason, desk.piece.observed) == ("paused", "holiday", "backoff")


def test_registering_again_keeps_what_the_piece_has_learnt():
    """A new configuration keeps the piece's state and its past."""
    desk = Desk()
    desk.register()
    desk.finish(desk.begin(), state=b'{"etag":1}')
    success = desk.piece.last_success_at
    desk.register(config=b"2")
    assert (desk.piece.state, desk.piece.last_success_at, desk.piece.config) == (b'{"etag":1}', success, b"2")


def test_a_success_after_failures_starts_afresh():
    """One success clears the count of failures in a row; the last failure is still told."""
    desk = Desk()
    desk.register()
    for outcome in ("failed", "failed", "success"):
        desk.finish(desk.begin(), outcome)
    assert (desk.piece.consecutive_failures, desk.piece.observed) == (0, "idle")
    assert desk.piece.last_error is not None


def test_coming_back_later_is_no_verdict():
    """An update that asks to come back later leaves the count of failures alone."""
    desk = Desk()
    desk.register()
    desk.finish(desk.begin(), "failed")
    desk.finish(desk.begin(), "retry_after", retry_after=5)
    assert desk.piece.consecutive_failures == 1


def test_coming_back_at_once_is_not_a_loop():
    """An update that asks to come back in no time waits a second at least."""
    desk = Desk()
    desk.register()
    done = desk.finish(desk.begin(), "retry_after", retry_after=0)
    assert done.next_run_at == NOW + SECOND


STEPS = st.lists(
    st.sampled_from(["register", "run_now", "begin", "success", "skipped", "retry_after", "failed", "broken"]),
    max_size=40,
)


@settings(derandomize="CI" in os.environ, deadline=None)
@given(STEPS)
def test_a_piece_always_has_exactly_one_update_to_come(steps):
    """Whatever happens in whatever order: one unended update, unless the piece stopped for good."""
    desk, under_way = Desk(), None
    desk.register()
    for step in steps:
        desk.now += SECOND
        if step == "register":
            desk.register()
        elif step == "run_now":
            desk.run_now()
        elif under_way is None:
            if desk.piece.run_id is not None:
                under_way = desk.begin()
        elif step != "begin":
            failed = step in {"failed", "broken"}
            desk.finish(under_way, "failed" if failed else step, permanent=step == "broken")
            under_way = None
        unended = [run for run in desk.draft.all(Run) if run.status not in ENDED]
        assert [run.run_id for run in unended] == ([desk.piece.run_id] if desk.piece.run_id else [])
        assert (desk.piece.run_id is None) == (desk.piece.observed == "broken")
        assert desk.piece.next_run_at is None or desk.piece.run_id is not None
