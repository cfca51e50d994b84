from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.errors import ValidationError
from piecework.services.digest import BODIES_LIMIT, BREAK, FREQUENCIES, TEXT_LIMIT, Told, due_at, subject_of, text_of

NOW = datetime(2026, 3, 28, 12, 0, 0, 5, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("frequency", "now", "zone", "due"),
    [
        ("asap", NOW, None, "2026-03-28T12:10:00+00:00"),
        ("daily", NOW, UTC, "2026-03-29T00:00:00+00:00"),
        ("daily", NOW, BERLIN, "2026-03-28T23:00:00+00:00"),
        # The day of 23 hours, and the one of 25.
        ("daily", NOW + timedelta(days=1), BERLIN, "2026-03-29T22:00:00+00:00"),
        ("daily", datetime(2026, 10, 25, 12, tzinfo=UTC), BERLIN, "2026-10-25T23:00:00+00:00"),
        # At midnight the next one counts.
        ("daily", datetime(2026, 3, 29, tzinfo=UTC), UTC, "2026-03-30T00:00:00+00:00"),
        # A midnight that the clocks left out: the first moment of that day.
        ("daily", datetime(2018, 11, 3, 12, tzinfo=UTC), ZoneInfo("America/Sao_Paulo"), "2018-11-04T03:00:00+00:00"),
    ],
)
def test_when_somebody_is_told(frequency, now, zone, due):
    """Soon is ten minutes later, daily the next midnight of the zone, also where the clocks change."""
    assert due_at(frequency, now, zone=zone).isoformat() == due


def test_who_wants_to_hear_nothing_is_never_told():
    """`none` is never, forced or not; forced is now for the others."""
    assert [due_at("none", NOW, force=force) for force in (False, True)] == [None, None]
    assert [due_at(frequency, NOW, force=True) for frequency in ("asap", "daily")] == [NOW, NOW]


@pytest.mark.parametrize("wrong", ["weekly", "", None, 7])
def test_an_unknown_frequency_is_refused(wrong):
    """The error names those that there are."""
    with pytest.raises(ValidationError, match="asap, daily, none"):
        due_at(wrong, NOW)


@given(
    st.sampled_from(FREQUENCIES),
    st.integers(600_000_000, 2_000_000_000).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    st.sampled_from(["Europe/Berlin", "America/Sao_Paulo", "Asia/Kathmandu", "Pacific/Apia", "UTC"]).map(ZoneInfo),
)
def test_nobody_waits_longer_than_two_days(frequency, now, zone):
    """Whatever the clocks of a place do, what is due is later than now, and soon enough."""
    due = due_at(frequency, now, zone=zone)
    if due is not None:
        assert timedelta(0) < due - now <= timedelta(days=2)


@pytest.mark.parametrize(
    ("told", "count", "subject", "text"),
    [
        ([Told(None, "a\nb", 1)], 1, "news: 1 notification", "a\nb"),
        ([Told("New comment", "a", 1)], 1, "New comment", "a"),
        ([Told("New comment", "a", 2)], 2, "New comment", "a\n(2 times)"),
        ([Told("x", "a", 1), Told(None, "b", 3)], 4, "news: 4 notifications", f"x\n\na{BREAK}b\n(3 times)"),
        ([Told(None, "a", 1)], 9, "news: 9 notifications", f"a{BREAK}and 8 more notifications"),
        ([Told(None, "a", 1)], 2, "news: 2 notifications", f"a{BREAK}and 1 more notification"),
    ],
)
def test_what_a_digest_says(told, count, subject, text):
    """One notification is the mail, several are counted and divided; what found no room is counted too."""
    assert (subject_of(told, count, "news"), text_of(told, count)) == (subject, text)


def test_a_digest_has_an_end():
    """However much there is to tell, a mail tells so many and so long ones, but always one."""
    many = text_of([Told(None, f"body {n}", 2) for n in range(BODIES_LIMIT + 5)], 2 * BODIES_LIMIT + 10)
    assert many.endswith(f"body {BODIES_LIMIT - 1}\n(2 times){BREAK}and 10 more notifications")
    long = text_of([Told(None, "x" * TEXT_LIMIT, 1), Told(None, "y", 1)], 2)
    assert long == f"{'x' * TEXT_LIMIT}{BREAK}and 1 more notification"
