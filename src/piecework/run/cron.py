"""When a cron expression is met: five fields, six with seconds first, or a name such as `@hourly`, in a time zone.

On the two days when clocks change, what is set for a fixed time of day happens once: what the spring leaves out right
after the gap, what the autumn has twice the first time only. What happens every hour, minute or second goes on so.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from piecework.clock import SECOND, as_datetime
from piecework.errors import NotFoundError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import tzinfo

ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
    "@minutely": "* * * * *",
}
"""Names for expressions, as cron has them."""


class Cron:
    """One or several cron expressions in a time zone.

    Args:
        expressions: What is met when any of them is.
        tz: The zone's name, such as "Europe/Berlin"; None means UTC.

    Raises:
        ValidationError: An expression is not cron or is never met, or there is no such zone.
    """

    def __init__(self, expressions: str | Iterable[str], tz: str | None = None) -> None:
        given = [expressions] if isinstance(expressions, str) else list(expressions)
        if not given or not all(isinstance(one, str) for one in given):
            raise ValidationError(f"a schedule is a cron expression such as '*/5 * * * *', not {expressions!r:.80}")
        self._zone = _zone(tz)
        self._parts = [part for one in given for part in _parts(one)]
        self.text = ", ".join(" ".join(one.split()) for one in given) + (f" {tz}" if tz else "")

    def __repr__(self) -> str:
        return f"<cron {self.text}>"

    def following(self, moment: int) -> int | None:
        """The first time after a moment that it is met; None where there is none within decades.

        Args:
            moment: Microseconds since the epoch, and so is what is answered.
        """
        found = [_following(text, moment - shift, self._zone) for text, shift in self._parts]
        moments = [one + shift for one, (_, shift) in zip(found, self._parts, strict=True) if one is not None]
        return min(moments, default=None)


def _following(text: str, moment: int, zone: tzinfo) -> int | None:
    from cronsim import CronSim

    start = as_datetime(moment)
    assert start is not None
    # Its own clock has no second time around: it may answer with what has been, and then with what follows.
    for found in CronSim(text, start.astimezone(zone)):
        at = round(found.timestamp()) * SECOND
        if at > moment:
            return at
    return None


def _parts(expression: str) -> list[tuple[str, int]]:
    """An expression as those that cron itself has, each with how many microseconds later it is meant."""
    text = " ".join(expression.split())
    if text.startswith("@"):
        if text.lower() not in ALIASES:
            known = NotFoundError.among("name of a schedule", text, ALIASES).message
            raise ValidationError(f"schedule {expression!r}: {known}")
        text = ALIASES[text.lower()]
    parsed = _parse(expression, text)
    fields = text.split()
    if len(fields) == 6 and not fields[1].startswith("*") and not fields[2].startswith("*"):
        # A fixed time of day is looked after on the days when clocks change only where there are no seconds.
        return [(" ".join(fields[1:]), second * SECOND) for second in sorted(parsed.seconds)]
    return [(text, 0)]


def _parse(expression: str, text: str) -> Any:
    from cronsim import CronSim, CronSimError

    try:
        parsed = CronSim(text, datetime(2000, 1, 1, tzinfo=UTC))
        next(parsed)
    except CronSimError as error:
        raise ValidationError(
            f"schedule {expression!r} is not cron: {error}. Five fields (minute hour day month weekday), six with "
            "seconds first, or a name such as @hourly"
        ) from error
    except StopIteration:
        raise ValidationError(f"schedule {expression!r} is never met") from None
    return parsed


@lru_cache(maxsize=64)
def _zone(name: str | None) -> tzinfo:
    if name is None or name == "UTC":
        return UTC
    from zoneinfo import ZoneInfo, available_timezones

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        known = available_timezones()
        hint = "" if known else "This machine has no time zones: pip install tzdata"
        found = NotFoundError.among("time zone", str(name), known, hint=hint)
        raise ValidationError(f"tz={name!r}: {found.message}") from error
