"""An item on its way through an engine, and how its caller gets the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from piecework.store.contract import Failure

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from piecework.store.contract import Decide, Verb

UNDECIDED = object()
"""The outcome of an item that has none yet."""


@dataclass(slots=True)
class Job:
    """One item on its way: what to do with it, and who waits for its outcome."""

    verb: Verb
    item: Any
    decide: Decide
    now: int
    future: asyncio.Future[Any]
    then: Callable[[Any], None] | None = None
    outcome: Any = UNDECIDED

    def resolve(self) -> None:
        """Answers the caller, on the caller's loop; what had to follow is called first, also for one that has gone."""
        if self.then is not None and not isinstance(self.outcome, Failure):
            try:
                self.then(self.outcome)
            except Exception as error:  # noqa: BLE001 - the others of its group get their answers; the loop tells it
                self.future.get_loop().call_exception_handler(
                    {"message": f"what had to follow a commit of {self.verb} failed", "exception": error}
                )
        if self.future.done():
            return
        if isinstance(self.outcome, Failure):
            self.future.set_exception(self.outcome.error)
            self.future.exception()  # marks it as seen: a caller that was cancelled does not wait for it any more
        else:
            self.future.set_result(self.outcome)
