"""Writes the table of admission into docs/how-it-works.md, as the code decides: run it when that changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from piecework.run.admission import Exclusive, Mode, Serialized, SingletonLoop, Transient, admit, slot_of

if TYPE_CHECKING:
    from piecework.store.records import Slot

PAGE = Path(__file__).parent / "how-it-works.md"
OPEN, CLOSE = "<!-- admission -->", "<!-- /admission -->"

MODES: Final[tuple[tuple[str, Mode], ...]] = (
    ("`Transient(concurrency, capacity)`", Transient(concurrency=1, capacity=1)),
    ("`Serialized(capacity)`", Serialized(capacity=1)),
    ('`SingletonLoop(on_busy="drop")`', SingletonLoop(on_busy="drop")),
    ('`SingletonLoop(on_busy="signal")`', SingletonLoop(on_busy="signal")),
    ('`SingletonLoop(on_busy="replace")`', SingletonLoop(on_busy="replace")),
    ('`Exclusive(on_busy="reject")`', Exclusive(on_busy="reject")),
    ('`Exclusive(on_busy="queue_single")`', Exclusive(on_busy="queue_single")),
)


def situations(mode: Mode) -> dict[str, Slot]:
    """The slot of a mode in each of the situations that the table tells."""
    free = slot_of(mode, "key", "workflow")
    single = bool(mode.on_busy)
    busy = replace(free, live=1, active_run_id="run" if single else None)
    waiting = {"queued": 1, "pending_run_id": "next" if single else None}
    return {
        "free": free,
        "closing": replace(free, closing=1),
        "busy": busy,
        "busy, full": replace(busy, **waiting),
    }


def table() -> str:
    """The table: what becomes of an event in each mode and situation, and the reason that is told with it."""
    columns = list(situations(Transient()))
    lines = [f"| mode | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| {name} | {' | '.join(_told(slot) for slot in situations(mode).values())} |" for name, mode in MODES]
    return "\n".join(lines)


def _told(slot: Slot) -> str:
    verdict = admit(slot)
    words = [f"`{verdict.admission.value}`"]
    if verdict.reason is not None:
        words.append(f"reason `{verdict.reason}`")
    if verdict.supersedes:
        words.append("the one that waits is `superseded`")
    return ", ".join(words)


def page() -> str:
    """The page as it has to be."""
    before, rest = PAGE.read_text("utf-8").split(OPEN)
    return f"{before}{OPEN}\n{table()}\n{CLOSE}{rest.split(CLOSE)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
