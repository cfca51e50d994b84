"""When cron expressions are met, above all on the days when clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.clock import SECOND
from piecework.errors import ValidationError
from piecework.run.cron import ALIASES, Cron

BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"
SANTIAGO, LORD_HOWE = "America/Santiago", "Australia/Lord_Howe"
DAILY = ("30 2 * * *", "7 30 2 * * *", "15 0 * * *", "59 23 * * *", "0 1 * * *")
ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Asia/Kathmandu", "UTC")
EXPRESSIONS = (
    *("30 2 * * *", "15 30 2 * * *", "*/10 30 2 * * *", "0 0 * * *", "30 0 * * *", "0 */6 * * *", "0,30 1,2,3 * * *"),
    *("0 * * * *", "*/15 * * * *", "0 3 * * SUN", "0 0 1 * *", "0 0 L * *", "* * * * * *", "@weekly", "59 23 * * *"),
)
MOMENTS = st.datetimes(datetime(2020, 1, 1), datetime(2032, 1, 1)).map(  # noqa: DTZ001 - made aware in the next line
    lambda at: round(at.replace(tzinfo=UTC, microsecond=0).timestamp()) * SECOND
)


def times(expression, tz, begin, count):
    """The first times after a local moment, as that zone's clocks show them."""
    cron, zone = Cron(expression, tz), ZoneInfo(tz)
    moment, found = round(datetime.fromisoformat(begin).replace(tzinfo=zone).timestamp()) * SECOND, []
    for _ in range(count):
        moment = cron.following(moment)
        found.append(datetime.fromtimestamp(moment // SECOND, zone).isoformat(timespec="seconds"))
    return found


@pytest.mark.parametrize(
    ("expression", "tz", "begin", "expected"),
    [
        # Berlin's clocks go from 2:00 to 3:00 on 29 March 2026, and from 3:00 back to 2:00 on 25 October.
        ("30 2 * * *", BERLIN, "2026-03-28T12:00", ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]),
        (
            "9 30 2 * * *",
            BERLIN,
            "2026-03-28T12:00",
            ["2026-03-29T03:00:09+02:00", "2026-03-30T02:30:09+02:00"],
        ),
        ("30 2 * * *", BERLIN, "2026-10-24T12:00", ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]),
        (
            "9 30 2 * * *",
            BERLIN,
            "2026-10-24T12:00",
            ["2026-10-25T02:30:09+02:00", "2026-10-26T02:30:09+01:00"],
        ),
        (
            "0 * * * *",
            BERLIN,
            "2026-03-29T00:30",
            ["2026-03-29T01:00:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-29T04:00:00+02:00"],
        ),
        (
            "0 * * * *",
            BERLIN,
            "2026-10-25T01:30",
            ["2026-10-25T02:00:00+02:00", "2026-10-25T02:00:00+01:00", "2026-10-25T03:00:00+01:00"],
        ),
        (
            "*/20 * * * *",
            BERLIN,
            "2026-03-29T01:30",
            ["2026-03-29T01:40:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-29T03:20:00+02:00"],
        ),
        # New York's: 8 March and 1 November 2026.
        (
            "15 2 * * *",
            NEW_YORK,
            "2026-03-07T12:00",
            ["2026-03-08T03:00:00-04:00", "2026-03-09T02:15:00-04:00"],
        ),
        (
            "15 1 * * *",
            NEW_YORK,
            "2026-10-31T12:00",
            ["2026-11-01T01:15:00-04:00", "2026-11-02T01:15:00-05:00"],
        ),
        # Santiago's spring forward leaves midnight out.
        (
            "0 0 * * *",
            SANTIAGO,
            "2026-09-05T12:00",
            ["2026-09-06T01:00:00-03:00", "2026-09-07T00:00:00-03:00"],
        ),
        # Half an hour on Lord Howe Island.
        (
            "15 2 * * *",
            LORD_HOWE,
            "2026-10-03T12:00",
            ["2026-10-04T02:30:00+11:00", "2026-10-05T02:15:00+11:00"],
        ),
        ("0 8 * * 1", BERLIN, "2026-03-27T12:00", ["2026-03-30T08:00:00+02:00", "2026-04-06T08:00:00+02:00"]),
        ("0 0 29 2 *", BERLIN, "2026-01-01T00:00", ["2028-02-29T00:00:00+01:00", "2032-02-29T00:00:00+01:00"]),
        ("*/20 * * * * *", "UTC", "2026-01-01T00:00", ["2026-01-01T00:00:20+00:00", "2026-01-01T00:00:40+00:00"]),
    ],
)
def test_the_days_when_clocks_change(expression, tz, begin, expected):
    """A fixed time of day comes once on both days; what comes every hour or minute goes on by."""
    assert times(expression, tz, begin, len(expected)) == expected


@given(st.sampled_from(EXPRESSIONS), st.sampled_from(ZONES), MOMENTS)
def test_what_follows_is_later_and_next(expression, tz, moment):
    """The following time is later, and the same one follows from any moment before it: none is between."""
    cron = Cron(expression, tz)
    following = cron.following(moment)
    assert following > moment
    for part in (0.1, 0.5, 0.9):
        between = moment + round((following - moment) * part)
        assert cron.following(between) == following
    assert cron.following(following - 1) == following
    assert cron.following(following) > following


@given(
    st.sampled_from(["30 2 * * *", "7 30 2 * * *", "15 0 * * *", "59 23 * * *", "0 1 * * *"]),
    st.sampled_from(ZONES),
    MOMENTS,
)
def test_a_time_of_day_comes_once_a_day(expression, tz, moment):
    """A fixed time of day comes once on each day of the calendar, whatever its clocks do."""
    cron, zone, days = Cron(expression, tz), ZoneInfo(tz), []
    for _ in range(8):
        moment = cron.following(moment)
        days.append(datetime.fromtimestamp(moment // SECOND, zone).date())
    assert days == [days[0] + timedelta(days=number) for number in range(8)]


@pytest.mark.parametrize("name", ALIASES)
def test_names(name):
    """`@hourly` and its like mean what cron means by them."""
    assert Cron(name).following(0) == Cron(ALIASES[name]).following(0)


def test_several_expressions():
    """Of several expressions the one that is met first counts."""
    cron = Cron(["0 8 * * *", "30 9 * * *"])
    first = cron.following(0)
    assert (first, cron.following(first)) == (8 * 3600 * SECOND, (9 * 60 + 30) * 60 * SECOND)


@pytest.mark.parametrize(
    "expression", ["", "* * * *", "60 * * * *", "* * * * * * *", "0 0 31 2 *", "@reboot", "@hourli", "every minute", []]
)
def test_what_is_no_schedule_is_refused(expression):
    """What is not cron, or is never met, is refused where it is declared."""
    with pytest.raises(ValidationError, match="schedule"):
        Cron(expression)


@pytest.mark.parametrize("tz", ["Europe/Berlim", "", "../etc/passwd", "Nowhere"])
def test_unknown_zones_are_refused(tz):
    """A time zone that there is not is refused, with near names."""
    with pytest.raises(ValidationError, match="time zone"):
        Cron("@daily", tz)
