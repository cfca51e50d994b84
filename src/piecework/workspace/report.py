"""What is told of a workspace when it has closed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datetime import datetime
    from types import CodeType

_OURS = str(Path(__file__).parents[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseReport:
    """How a workspace ended.

    Attributes:
        id: The workspace.
        closed_at: When its closing was over.
        duration_seconds: From its opening until then.
        place: The line that it was closed at, as `file.py:17 in handler`; empty where no code of the user's closed it.
        services: What was closed in it, by name, in that order.
        failures: What failed meanwhile: `type`, `code` and `message` of each.
    """

    id: str
    closed_at: datetime
    duration_seconds: float
    place: str = ""
    services: tuple[str, ...] = ()
    failures: tuple[dict[str, Any], ...] = ()


def place_text(place: tuple[CodeType, int] | None) -> str:
    """Tells where a workspace was closed as `file.py:17 in handler`; empty where no code of the user's closed it.

    Args:
        place: The code, and which instruction of it: noting that costs next to nothing.
    """
    if place is None or place[0].co_filename.startswith(_OURS):
        return ""
    code, instruction = place
    line = next((line for start, end, line in code.co_lines() if start <= instruction < end), None)
    return f"{Path(code.co_filename).name}:{line or code.co_firstlineno} in {code.co_name}"
