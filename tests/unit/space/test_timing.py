"""Promises about when pieces run, as it is declared and registered."""

from __future__ import annotations

import itertools
import os
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piecework.clock import SECOND, as_datetime
from piecework.errors import ValidationError
from piecework.run.schedule import ALL_TURNS, in_turn, set_back
from piecework.space.timing import Timing, check_timing, offered, own_timing

BERLIN = ZoneInfo("Europe/Berlin")
MOMENTS = st.integers(min_value=1_600_000_000, max_value=1_900_000_000).map(lambda second: second * SECOND)


def at(*parts, tz=UTC):
    """A moment in microseconds."""
    return round(datetime(*parts, tzinfo=tz).timestamp()) * SECOND


@pytest.mark.covers("N400")
@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"every_seconds": 0}, "every_seconds"),
        ({"every_seconds": 60, "schedule": "@daily"}, "every_seconds or schedule"),
        ({"schedule": "not cron"}, "not cron"),
        ({"schedule": "@daily", "tz": "Europe/Brelin"}, "Europe/Berlin"),
        ({"tz": "Nowhere"}, "Nowhere"),
        ({"on": "feed.changed"}, r"on=\['feed.changed'\]"),
        ({"on": [""]}, "event type"),
        ({"on": [3]}, "event types"),
        ({"overlap": "allow"}, "overlap is one of skip, queue, cancel"),
        ({"missed": "none"}, "missed is one of"),
        ({"jitter": 2}, "jitter"),
        ({"jitter": True}, "jitter"),
    ],
)
def test_a_wrong_timing_is_refused(given, wrong):
    """A declaration with an interval and a schedule, or with what is none, is refused by name."""
    with pytest.raises(ValidationError, match=wrong):
        check_timing("piece 'feed'", **given)


@pytest.mark.covers("N527")
@pytest.mark.parametrize("seconds", [1e-9, 0.0099])
def test_an_interval_has_a_floor(seconds):
    """An interval shorter than a hundredth of a second is refused, where it is declared and where it is registered."""
    told = f"every_seconds has to be 0.01 at least, not {seconds}"
    with pytest.raises(ValidationError, match=f"piece 'x': {told}"):
        check_timing("piece 'x'", every_seconds=seconds)
    with pytest.raises(ValidationError, match=told):
        own_timing(Timing(), seconds, None)
    assert check_timing("x", every_seconds=0.01).every == own_timing(Timing(), 0.01, None)["every"] == 10_000


def test_what_is_left_out():
    """Without a word a piece runs every minute; with events alone it has neither interval nor first update."""
    assert (check_timing("x").every, check_timing("x").at_once) == (60 * SECOND, True)
    waits = check_timing("x", on=["feed.*"])
    assert (waits.every, waits.at_once, waits.overlap, waits.words()) == (None, False, "queue", "on feed.*")
    both = check_timing("x", on=["feed.*"], every_seconds=5)
    assert (both.at_once, both.words()) == (True, "every 5 s, on feed.*")
    assert check_timing("x", schedule="0 8 * * *", tz="Europe/Berlin").words() == "0 8 * * * Europe/Berlin"


def test_a_piece_has_a_time_of_its_own():
    """A registration with an interval or a schedule overrides its integration's; the time zone stays."""
    usual = check_timing("x", schedule="0 8 * * *", tz="Europe/Berlin")
    own = usual.of_piece(**own_timing(usual, 30, None))
    assert (own.schedule, own.every) == (None, 30 * SECOND)
    own = usual.of_piece(**own_timing(usual, None, ["0 9 * * *", "@hourly"]))
    assert own.words() == "0 9 * * *, @hourly Europe/Berlin"
    assert usual.of_piece(**own_timing(usual, None, None)) == usual
    with pytest.raises(ValidationError, match="every_seconds or schedule"):
        own_timing(usual, 30, "@daily")


@pytest.mark.parametrize(
    "timing",
    [Timing(), check_timing("x", schedule=["@daily", "5 5 * * *"], tz="Europe/Berlin", missed="all", overlap="cancel")],
)
def test_an_offer_tells_the_timing(timing):
    """What a node offers tells clients all that they need to know of an integration's times."""
    assert offered(timing.offer("feed")) == ("feed", timing)
    assert offered("job:tidy") is offered("piece:feed") is None


@pytest.mark.covers("A17")
@given(day=st.integers(0, 800))
@settings(derandomize="CI" in os.environ, deadline=None, max_examples=60)
def test_a_daily_time_is_met_once_a_day_whatever_the_clocks_do(day):
    """A schedule's time of day is met once on every local day, the days when clocks change included."""
    timing = check_timing("x", schedule="30 2 * * *", tz="Europe/Berlin")
    first = at(2025, 1, 1, 12, tz=BERLIN) + day * 86400 * SECOND
    occurrence, found = first, []
    for _ in range(3):
        due_at, occurrence = timing.after(occurrence, occurrence, occurrence, 0.0)
        assert due_at == occurrence
        found.append(as_datetime(occurrence).astimezone(BERLIN))
    days = [moment.date() for moment in found]
    assert [later - earlier for earlier, later in itertools.pairwise(days)] == [timedelta(days=1)] * 2
    assert {(moment.hour, moment.minute) for moment in found} <= {(2, 30), (3, 0), (3, 30)}


@pytest.mark.covers("A17")
def test_the_night_when_clocks_change():
    """A time of day that the spring leaves out comes right after the gap; what comes twice in autumn is met once."""
    timing = check_timing("x", schedule="30 2 * * *", tz="Europe/Berlin")
    before = at(2026, 3, 28, 12, tz=BERLIN)
    _, gap = timing.after(before, before, before, 0.0)
    assert gap == at(2026, 3, 29, 1, 0)  # 3:00 in Berlin, an hour earlier in UTC than the day before
    before = at(2026, 10, 24, 12, tz=BERLIN)
    _, first = timing.after(before, before, before, 0.0)
    _, second = timing.after(first, first, first, 0.0)
    assert (first, second) == (at(2026, 10, 25, 0, 30), at(2026, 10, 26, 1, 30))


@pytest.mark.covers("N401")
@given(MOMENTS, st.integers(0, 10), st.integers(0, 7200), st.sampled_from(["once", "skip", "all"]))
@settings(derandomize="CI" in os.environ, deadline=None)
def test_the_next_time_of_a_schedule(now, missed_hours, took, missed):
    """After downtime "once" and "skip" go on in the future, "all" with the very next time; "queue" leaves none out."""
    hour = 3600 * SECOND
    occurrence = now // hour * hour
    began = occurrence + missed_hours * hour + SECOND
    ended = began + took * SECOND
    due, coming = check_timing("x", schedule="@hourly", missed=missed).after(occurrence, began, ended, 0.5)
    assert due == coming
    if missed == "all" and missed_hours:
        assert coming == occurrence + hour
    else:
        assert ended < coming <= ended + hour
    queued = check_timing("x", schedule="@hourly", missed=missed, overlap="queue")
    _, coming = queued.after(occurrence, began, ended, 0.5)
    assert began < coming <= began + hour or (missed == "all" and coming == occurrence + hour)


@given(MOMENTS, st.floats(0, 1))
def test_a_schedule_has_jitter_only_where_it_is_said(now, spread):
    """A part of what lies between two times is added by chance where the declaration says so."""
    due, coming = check_timing("x", schedule="@hourly", jitter=0.5).after(now, now, now, spread)
    assert coming <= due <= coming + 1800 * SECOND
    due, coming = check_timing("x", schedule="@hourly").after(now, now, now, spread)
    assert due == coming


@pytest.mark.covers("N402")
@given(MOMENTS, st.integers(0, 20_000))
def test_what_is_overdue_is_spread(now, count):
    """What is overdue together is due one after the other, the first at once, the last within half a minute."""
    moments = in_turn(now, count)
    assert len(moments) == count
    assert moments == sorted(moments)
    if count:
        assert moments[0] == now
        assert moments[-1] <= now + ALL_TURNS
    assert len(set(moments)) == count


@pytest.mark.covers("A17")
@given(MOMENTS, st.integers(0, 7200), st.integers(-7200, 7200))
def test_a_clock_that_is_set_back_makes_nothing_wait_for_long(since, delay, step):
    """However far the clock was set, what was due in so long is due in so long at the latest, and never in the past."""
    due_at = since + delay * SECOND
    now = since + step * SECOND
    moved = set_back(due_at, since, now)
    assert moved <= max(due_at, now)
    assert moved - now <= delay * SECOND
    assert moved == due_at or moved >= now
