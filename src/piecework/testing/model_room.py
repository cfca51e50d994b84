"""A slot as the model sees it: lists of runs, and what the modes promise about them, in plain words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from piecework.store.records import Slot


@dataclass(slots=True)
class Room:
    """The runs of one key of a workflow.

    Attributes:
        like: The key, the workflow and the numbers of its newest registration; its counts mean nothing here.
        waiting: Those that were admitted and have not started, in their order.
        live: Those that have started and not ended, paused ones too.
        paused: Those of them that are paused.
        closing: Those that have ended and are not clean.
        admitted: How many ever came in.
        active: Who has the place, as far as a mode of one run at a time knows.
        pending: Who waits there for it, and gives way to a newer one.
    """

    like: Slot
    waiting: list[str] = field(default_factory=list)
    live: list[str] = field(default_factory=list)
    paused: set[str] = field(default_factory=set)
    closing: set[str] = field(default_factory=set)
    admitted: int = 0
    active: str | None = None
    pending: str | None = None

    def taken(self) -> int:
        """How many places the started runs have: a paused one keeps its own only where the mode says so."""
        return len(self.live) - (0 if self.like.hold_while_paused else len(self.paused))

    def free(self) -> int:
        """How many places nobody has; those that are being cleaned count as free."""
        return max(0, self.like.concurrency - self.taken())

    def can_begin(self) -> bool:
        """Whether the next of those that wait may start: there is a place, and it is clean."""
        return bool(self.waiting) and self.taken() + len(self.closing) < self.like.concurrency

    def admit(self) -> tuple[str, str | None]:
        """What becomes of one more event, and why."""
        free = self.free()
        if not self.waiting and len(self.closing) < free:
            return "started", None
        if self.like.on_busy:
            return ("queued", "closing") if free else self._busy()
        if len(self.waiting) < free:
            return "queued", "closing"
        if len(self.waiting) < free + self.like.capacity:
            return "queued", None
        return "dropped", {"transient": "capacity", "serialized": "queue_full"}[self.like.mode]

    def _busy(self) -> tuple[str, str | None]:
        plain: dict[str, tuple[str, str | None]] = {
            "drop": ("dropped", "busy"),
            "reject": ("rejected", "BUSY"),
            "queue_single": ("queued", None),
        }
        if self.like.on_busy in plain:
            return plain[self.like.on_busy]
        if self.active is None:  # whom to signal or to replace is not known, and the event must not be lost
            return "queued", "busy"
        return ("signalled" if self.like.on_busy == "signal" else "replaced"), None

    # -- what happens to its runs ------------------------------------------------------------------------------------

    def govern(self, like: Slot) -> None:
        """Goes by the numbers of a newer registration."""
        old, self.like = self.like, like
        if _numbers(old) == _numbers(like):
            return
        if not like.on_busy or not self.taken():
            self.active = None
        if not like.on_busy:
            self.pending = None

    def enter(self, run_id: str, *, start: bool) -> int:
        """Lets a run in, to start or to wait; answers its place in the order of admission."""
        self.admitted += 1
        if start:
            self.live.append(run_id)
            self.active = run_id if self.like.on_busy else None
        else:
            self.waiting.append(run_id)
            self.pending = run_id if self.like.on_busy else None
        return self.admitted

    def next(self) -> str:
        """Starts whoever has waited longest and answers who that is."""
        run_id = self.waiting.pop(0)
        self.live.append(run_id)
        self.active = run_id if self.like.on_busy else None
        self.pending = None if self.pending == run_id else self.pending
        return run_id

    def pause(self, run_id: str) -> None:
        """A run pauses."""
        self.paused.add(run_id)
        if not self.like.hold_while_paused and self.active == run_id:
            self.active = None

    def wake(self, run_id: str) -> None:
        """A paused run goes on, whether there is a place for it or not."""
        self.paused.remove(run_id)
        if self.like.on_busy and self.active is None:
            self.active = run_id

    def end(self, run_id: str) -> None:
        """A started run ends; it is not clean yet."""
        self.live.remove(run_id)
        self.paused.discard(run_id)
        self.closing.add(run_id)
        self.active = None if self.active == run_id else self.active

    def leave(self, run_id: str) -> None:
        """A run goes that has nothing to clean: it waited, or it is clean by now."""
        if run_id in self.live:
            self.end(run_id)
        if run_id in self.waiting:
            self.waiting.remove(run_id)
            self.pending = None if self.pending == run_id else self.pending
        self.closing.discard(run_id)

    def empty(self) -> bool:
        """Whether nobody is in it."""
        return not (self.waiting or self.live or self.closing)


def _numbers(slot: Slot) -> tuple[object, ...]:
    return (slot.mode, slot.on_busy, slot.concurrency, slot.capacity, slot.hold_while_paused)
