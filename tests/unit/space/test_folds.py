"""Promises about what becomes of a piece, beyond those of the store's own suite."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from piecework import Backoff, ThreeStrikes
from piecework.clock import SECOND
from piecework.run.lifecycle import ENDED
from piecework.space.folds import (
    decide_finish_piece,
    decide_register_piece,
    decide_remove_piece,
    decide_run_piece,
    decide_set_desired,
)
from piecework.space.folds_wake import decide_move_piece, decide_wake_pieces
from piecework.store.draft import Draft
from piecework.store.items import (
    MovePiece,
    RegisterPiece,
    RemovePiece,
    RunPiece,
    SetDesired,
    WakePieces,
    WakingPieces,
)
from piecework.store.records import Delivery, EventRow, Piece, Run
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

    def register(self, *, at_once=True, **changes):
        item = RegisterPiece(piece=replace(piece(), **changes), run_id=self.fresh(), at_once=at_once)
        return decide_register_piece(self.draft, item, self.now)

    def run_now(self, overlap="skip"):
        item = RunPiece(space="acme", piece_id="hn", run_id=self.fresh(), overlap=overlap)
        return decide_run_piece(self.draft, item, self.now)

    def event(self, seq, overlap="queue", hops=0):
        """An event for the piece."""
        self.draft.load(Delivery, [(seq, "piece:feed", "", "")], [Delivery(seq, "piece:feed", "", "", "pending", None)])
        event = EventRow(seq, f"e-{seq}", "feed.changed", "acme", b"{}", self.now, hops)
        item = WakePieces(
            event_seq=seq, workflow_id="piece:feed", integration="feed", overlap=overlap, run_ids=(self.fresh(),)
        )
        entry = WakingPieces(item=item, event=event, pieces=(("acme", "hn"),), more=False)
        return decide_wake_pieces(self.draft, entry, self.now)

    def desire(self, desired):
        item = SetDesired(space="acme", piece_id="hn", desired=desired, reason=None, run_id=self.fresh())
        return decide_set_desired(self.draft, item, self.now)

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


WORDS = "register run_now begin success skipped retry_after failed broken queue cancel event paused enabled alone"
STEPS = st.lists(st.sampled_from(WORDS.split()), max_size=40)


@settings(derandomize="CI" in os.environ, deadline=None)
@given(STEPS)
def test_a_piece_always_has_exactly_one_update_to_come(steps):
    """Whatever happens in whatever order: one unended update, and at most one behind it, unless the piece rests."""
    desk, under_way, alone = Desk(), None, False
    desk.register()
    for number, step in enumerate(steps):
        desk.now += SECOND
        if step in {"register", "alone"}:
            alone = step == "alone"
            desk.register(at_once=not alone)
        elif step == "run_now":
            desk.run_now()
        elif step in {"queue", "cancel"}:
            desk.run_now(step)
        elif step == "event":
            desk.event(number)
        elif step in {"paused", "enabled"}:
            desk.desire(step)
        elif under_way is None:
            if desk.piece.run_id is not None:
                under_way = desk.begin()
        elif step != "begin":
            failed = step in {"failed", "broken"}
            every = {"every": None} if alone else {}
            desk.finish(
                desk.draft.get(Run, under_way.run_id), "failed" if failed else step, permanent=step == "broken", **every
            )
            under_way = None
        row = desk.piece
        unended = {run.run_id for run in desk.draft.all(Run) if run.status not in ENDED}
        assert unended == {run_id for run_id in (row.run_id, row.after_run_id) if run_id is not None}
        assert row.run_id is not None or row.observed in {"broken", "waiting"} or row.desired == "paused"
        by_hand = {desk.draft.get(Run, run_id).trigger_id for run_id in unended} == {"manual"}
        rests = row.observed == "waiting" or (row.observed == "broken" and not by_hand)
        assert not rests or row.run_id is None or under_way is not None
        assert row.next_run_at is None or row.run_id is not None
        if row.after_run_id is not None:  # it is not due before the one under way has ended
            assert (desk.draft.get(Run, row.after_run_id).due_at, under_way is not None) == (None, True)
        elif under_way is None and row.run_id is not None:
            assert desk.run.due_at == row.next_run_at


def test_what_made_an_update_due_stands_in_its_run():
    """A run says whether registration, time, an event, somebody, or an update that wants to come back made it due."""
    desk = Desk()
    desk.register()
    found = [desk.run.trigger_id]
    for outcome in ("success", "failed", "retry_after"):
        desk.finish(desk.begin(), outcome)
        found.append(desk.run.trigger_id)
    desk.finish(desk.begin(), every=None, due_at=desk.now + 7, occurrence=desk.now + 5)
    found.append(desk.run.trigger_id)
    assert (desk.piece.next_run_at, desk.piece.occurrence) == (desk.now + 7, desk.now + 5)
    desk.run_now()
    found.append(desk.run.trigger_id)
    desk.event(1)
    found.append(desk.run.trigger_id)
    assert found == ["registered", "interval", "retry", "retry", "cron", "manual", "event"]


@pytest.mark.covers("P11", "P12", "P14")
def test_an_event_leaves_a_disabled_piece_alone():
    """A piece that is paused has no update to come; neither that nor one that has stopped is woken by events."""
    desk = Desk()
    desk.register()
    desk.desire("paused")
    assert (desk.piece.run_id, desk.piece.next_run_at) == (None, None)
    assert (desk.event(1).run_ids, desk.piece.run_id) == ((), None)
    desk.desire("enabled")
    desk.finish(desk.begin(), "failed", permanent=True)
    assert (desk.event(2).run_ids, desk.piece.run_id) == ((), None)


@pytest.mark.covers("N403")
def test_events_that_come_during_an_update_are_one_more():
    """Under "queue" what comes during an update is exactly one more right after it, with the newest event."""
    desk = Desk()
    desk.register()
    run = desk.begin()
    for seq in (1, 2, 3):
        desk.event(seq)
    (after,) = [row for row in desk.draft.all(Run) if row.run_id != run.run_id]
    assert (after.due_at, after.event_seq) == (None, 3)
    done = desk.finish(run)
    assert (desk.piece.run_id, desk.run.due_at, done.next_run_at) == (after.run_id, desk.now, desk.now)
    desk.finish(desk.begin())
    assert (desk.run.trigger_id, desk.run.event_seq) == ("interval", None)


@pytest.mark.covers("N403")
def test_under_skip_nothing_follows():
    """Under "skip" what comes while an update is under way is that update."""
    desk = Desk()
    desk.register()
    run = desk.begin()
    assert desk.event(1, "skip").run_ids == (run.run_id,)
    assert desk.run_now("skip").run_id == run.run_id
    desk.finish(run)
    assert desk.run.trigger_id == "interval"


@pytest.mark.covers("N403")
def test_under_cancel_the_one_under_way_ends_uncharged():
    """Under "cancel" the one under way is told to end, once, which is no failure, and the new one follows at once."""
    desk = Desk()
    desk.register()
    run = desk.begin()
    first, second = desk.run_now("cancel"), desk.run_now("cancel")
    assert (first.aborting.run_id, second.aborting, first.run_id) == (run.run_id, None, second.run_id)
    done = desk.finish(desk.draft.get(Run, run.run_id), "failed", permanent=True)
    assert (done.status, desk.draft.get(Run, run.run_id).outcome) == ("aborted", "interrupted")
    assert (desk.piece.consecutive_failures, desk.piece.run_id, desk.run.due_at) == (0, first.run_id, desk.now)


def test_an_update_that_comes_back_has_its_event_still():
    """What an event made due, and what fails or wants to come back later, is handed that event again."""
    desk = Desk()
    desk.register(at_once=False)
    assert (desk.piece.observed, desk.piece.run_id) == ("waiting", None)
    desk.event(7)
    for outcome in ("failed", "retry_after"):
        desk.finish(desk.begin(), outcome, every=None)
        assert (desk.run.event_seq, desk.run.trigger_id) == (7, "retry")
    desk.finish(desk.begin(), every=None)
    assert (desk.piece.observed, desk.piece.run_id, desk.piece.next_run_at) == ("waiting", None, None)


def test_an_event_that_goes_round_and_round_stops():
    """A piece that wakes itself by its own events is woken no more after very many of them."""
    desk = Desk()
    desk.register(at_once=False)
    assert desk.event(1, hops=31).run_ids
    assert desk.run.hops == 31
    assert desk.event(2, hops=32).run_ids == ()
    assert desk.draft.get(Delivery, 2, "piece:feed", "", "").reason == "loop"


def test_an_event_is_handed_over_once():
    """What waits no longer is not handed over again, and an update that has the event already is not queued twice."""
    desk = Desk()
    desk.register(at_once=False)
    assert desk.event(1).run_ids == ("run-2",)
    desk.begin()
    assert desk.event(1).run_ids == ()  # as another node, that did not see the first one's commit to the end
    entry = WakingPieces(
        item=WakePieces(event_seq=1, workflow_id="piece:feed", integration="feed", overlap="queue", run_ids=("x",)),
        event=EventRow(1, "e-1", "feed.changed", "acme", b"{}", NOW, 0),
        pieces=(("acme", "hn"),),
        more=False,
    )
    assert not decide_wake_pieces(desk.draft, entry, NOW).decided


def test_registered_without_times_nothing_that_was_due_by_time_stays():
    """A piece that is registered to wait for events alone forgets what its interval had made due; an event stays."""
    desk = Desk()
    desk.register()
    desk.finish(desk.begin())
    due = desk.run
    desk.register(at_once=False)
    assert (desk.piece.observed, desk.draft.get(Run, due.run_id).outcome) == ("waiting", "interrupted")
    desk.event(1)
    desk.register(at_once=False)
    assert desk.run.event_seq == 1


@pytest.mark.covers("N522")
def test_an_event_waits_for_the_probe_of_a_half_open_piece():
    """An event for a half-open piece waits for its next probe, which is handed it; it brings that no nearer."""
    desk = Desk()
    desk.register()
    policy = Backoff(failures_limit=1)
    desk.finish(desk.begin(), "failed", failure=policy)
    probe_at = desk.run.due_at
    desk.now += SECOND
    desk.event(1)
    assert (desk.run.due_at, desk.piece.next_run_at, desk.run.event_seq) == (probe_at, probe_at, 1)
    desk.now = probe_at
    probe = desk.begin()
    assert desk.event(2, "cancel").aborting == ()  # what looks whether it works again is let look
    desk.finish(probe, "failed", failure=policy)
    assert (desk.run.event_seq, desk.run.due_at > desk.now + 3000 * SECOND) == (2, True)
    assert desk.piece.next_run_at == desk.run.due_at
    desk.run_now()
    assert (desk.run.due_at, desk.run.event_seq) == (desk.now, 2)  # who asks by hand need not wait
    desk.event(3)
    probe = desk.begin()
    desk.event(4)
    desk.finish(probe)
    assert (desk.piece.observed, desk.run.due_at, desk.run.event_seq) == ("idle", desk.now, 4)


@pytest.mark.covers("N522")
def test_who_asks_a_half_open_piece_by_hand_waits_for_no_probe():
    """What is asked by hand while a probe is under way follows right after it, also when an event comes on top."""
    desk = Desk()
    desk.register()
    policy = Backoff(failures_limit=1)
    desk.finish(desk.begin(), "failed", failure=policy)
    desk.now = desk.run.due_at
    probe = desk.begin()
    asked = desk.run_now("queue").run_id
    desk.event(1)
    desk.finish(probe, "failed", failure=policy)
    assert (desk.piece.run_id, desk.run.due_at, desk.run.event_seq) == (asked, desk.now, 1)


@pytest.mark.covers("N523")
@pytest.mark.parametrize("outcome", ["success", "failed", "retry_after"])
def test_registered_without_times_during_an_update_nothing_follows(outcome):
    """A piece that is registered for events alone during an update has none after it, and is not charged with it."""
    desk = Desk()
    desk.register()
    run = desk.begin()
    desk.register(at_once=False)
    done = desk.finish(run, outcome, retry_after=5, permanent=True)
    assert (done.next_run_at, desk.piece.run_id, desk.piece.observed) == (None, None, "waiting")
    assert (desk.piece.consecutive_failures, done.told) == (0, None)
    desk.event(1)
    assert (desk.piece.observed, desk.run.event_seq) == ("idle", 1)


@pytest.mark.covers("N523")
def test_an_event_that_comes_after_such_a_registration_is_an_update():
    """An event that comes before that update has ended is one more right after it, charged as every other."""
    desk = Desk()
    desk.register()
    run = desk.begin()
    desk.register(at_once=False)
    desk.event(1)
    desk.finish(run)
    assert (desk.piece.observed, desk.run.event_seq, desk.run.due_at) == ("idle", 1, desk.now)
    desk.finish(desk.begin(), "failed", every=None)
    assert (desk.piece.observed, desk.piece.consecutive_failures) == ("backoff", 1)


@pytest.mark.covers("A15")
def test_when_a_piece_is_gone_nothing_follows():
    """The update of a piece that was removed meanwhile ends and none follows; no event and no clock revives it."""
    desk = Desk()
    desk.register()
    run = desk.begin()
    desk.draft.remove(Piece, "acme", "hn")
    assert (desk.finish(run).status, desk.draft.get(Run, run.run_id).outcome) == ("completed", "success")
    assert desk.event(1).run_ids == ()
    assert not decide_move_piece(desk.draft, MovePiece(space="acme", piece_id="hn", was=NOW, due_at=NOW), NOW)
    assert [row.run_id for row in desk.draft.all(Run)] == [run.run_id]


def test_a_time_that_came_too_late_says_nothing_of_the_piece():
    """A time that was left out changes neither the last success nor the count of failures."""
    desk = Desk()
    desk.register()
    desk.finish(desk.begin(), "failed")
    desk.finish(desk.begin(), "skipped", missed=True)
    row = desk.piece
    assert (row.consecutive_failures, row.last_success_at, row.status) == (1, None, "Skipped: because")


def test_only_what_still_stands_where_it_was_seen_is_moved():
    """A due time is moved only as long as nobody has it or has given it another time."""
    desk = Desk()
    desk.register()

    def move(was, due_at):
        return decide_move_piece(desk.draft, MovePiece(space="acme", piece_id="hn", was=was, due_at=due_at), NOW)

    assert (move(NOW + 1, NOW + 2), move(NOW, NOW + 2), move(NOW, NOW + 3)) == (False, True, False)
    assert (desk.run.due_at, desk.piece.next_run_at) == (NOW + 2, NOW + 2)
    desk.begin()
    assert not move(NOW + 2, NOW)


WISHES = st.lists(
    st.sampled_from(["begin", "success", "later", "failed", "fatal", "abort", "run_now", "pause", "enable", "remove"]),
    max_size=40,
)


@settings(derandomize="CI" in os.environ, deadline=None)
@given(WISHES, st.sampled_from([Backoff(failures_limit=2), ThreeStrikes()]))
def test_what_is_told_of_a_piece_is_true(steps, policy):
    """Whatever happens: out of order is told before well again, each once, and a piece knows what was told last."""
    desk, under_way, told = Desk(), None, [None]
    desk.register()
    for step in steps:
        desk.now += SECOND
        piece = desk.draft.find(Piece, "acme", "hn")
        if piece is None or piece.desired == "removed":
            told = [None]
            desk.register()
        elif step == "run_now":
            desk.run_now()
        elif step in {"pause", "enable"}:
            desk.desire("paused" if step == "pause" else "enabled")
        elif step == "remove":
            item = RemovePiece(space="acme", piece_id="hn")
            decide_remove_piece(desk.draft, item, desk.now)
        elif under_way is None:
            under_way = desk.begin() if piece.run_id is not None else None
        elif step != "begin":
            if step == "abort":
                desk.draft.put(replace(desk.draft.get(Run, under_way.run_id), abort_reason="enough"))
            outcome = {"success": "success", "later": "retry_after"}.get(step, "failed")
            run = desk.draft.get(Run, under_way.run_id)
            done = desk.finish(run, outcome, permanent=step == "fatal", retry_after=5, failure=policy)
            under_way, told = None, told + [done.told] * (done.told is not None)
        piece = desk.draft.find(Piece, "acme", "hn")
        if piece is None:
            assert under_way is None
            continue
        unended = {run.run_id for run in desk.draft.all(Run) if run.status not in ENDED}
        assert unended == {piece.run_id, piece.after_run_id} - {None}
        if piece.desired == "enabled":
            triggers = {desk.draft.get(Run, run_id).trigger_id for run_id in unended}
            if piece.observed == "broken":
                assert triggers <= {"manual"}
            else:
                assert triggers
        if piece.desired != "removed":
            assert (piece.broken_at is not None) == (told[-1] == "piece:broken")
        assert (piece.observed in {"half-open", "broken"}) <= (piece.broken_at is not None)
        assert "piece:recovered" not in {told[n] for n in range(1, len(told)) if told[n - 1] != "piece:broken"}
