"""What a kind of work must offer to be run here.

Workflows, jobs and pieces are three; a fourth is a folder beside them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from piecework.bus.event import Event
    from piecework.store.items import Claimed, Definition, Route
    from piecework.store.records import EventRow, Wait


class Kind(Protocol):
    """A kind of work. The node calls it; it carries each run that it is given to a pause or to its end."""

    @property
    def name(self) -> str:
        """What stands in the `kind` column of its runs."""
        ...

    def known(self) -> list[str]:
        """The names (workflows, jobs, integrations) whose runs can be executed here; others wait."""
        ...

    def versions(self) -> dict[str, str | None]:
        """The names whose triggers are evaluated here, each with the version of its definition."""
        ...

    def definitions(self) -> Mapping[str, Definition]:
        """What is known here of those names whose runs depend on their definition; of others every run can be carried.

        The same object for as long as nothing has changed.
        """
        ...

    def offers(self) -> list[str]:
        """What other processes may find here: workflows by their ids, integrations as `piece:NAME={timing}`."""
        ...

    def routes(self, event: Event) -> list[Route]:
        """The triggers that an event matches. The user's predicates and keys run here, outside any transaction."""
        ...

    def matches(self, wait: Wait, event: EventRow, payload: dict[str, Any]) -> dict[str, Any] | None:
        """Whether an event meets a wait: the patch to resume with, or None. Pure: it runs inside a transaction."""
        ...

    async def execute(self, claimed: Claimed) -> None:
        """Carries a claimed run to its next pause or its end, and commits what becomes of it."""
        ...

    def abort(self, run_id: str, reason: str) -> None:
        """Tells a run that is executing here to end; unknown ids are ignored."""
        ...
