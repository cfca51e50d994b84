"""The service `__pause_service__`: how a step asks for events before its run pauses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piecework.errors import InvalidStateError, ValidationError
from piecework.run.folds import decide_register
from piecework.store.items import Register
from piecework.store.verbs.runs import register_waits
from piecework.workflow.definition import check_seconds
from piecework.workflow.pause import Clause, WaitFor, waits_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from piecework.workflow.executor import Executor
    from piecework.workflow.flight import Flight


class Pauses:
    """Registers and cancels what one run waits for.

    From `register` on matching events are kept for the run, so none is missed between here and the pause.

    Args:
        executor: Whose flights it looks at.
        run_id: The run.
    """

    def __init__(self, executor: Executor, run_id: str) -> None:
        self._executor = executor
        self._run_id = run_id

    async def register(
        self,
        events: str | Sequence[str],
        *,
        mode: str = "any",
        conditions: Sequence[Clause | Mapping[str, Any]] = (),
        patch: Mapping[str, Any] | None = None,
        timeout_seconds: float | None = None,
        window_seconds: float | None = None,
        max_buffer: int = 1000,
    ) -> str:
        """Asks for events; durable when it returns.

        Args:
            events: Event types.
            mode: "any": the first matching event is enough. "all": one of each type is needed; see `WaitFor`.
            conditions: Clauses, all of which have to hold: mappings with field, op and value. A value
                `{"$state": "path"}` is read from the run's state now.
            patch: Merged into the state beneath the event's payload.
            timeout_seconds: From the pause on; then the run goes on without an event.
            window_seconds: How long the run's own services are kept alive while it is paused; None means
                `Settings.pause_window_seconds`.
            max_buffer: How many events are kept before the pause; newer ones are dropped and noted.

        Returns:
            A handle for `cancel`.

        Raises:
            ValidationError: No event type, an unknown operator, a value that is not JSON, or one that the run's state
                does not have.
        """
        flight = self._flight()
        check_seconds("window_seconds", window_seconds)
        if not isinstance(max_buffer, int) or max_buffer < 1:
            raise ValidationError(f"max_buffer has to be a whole number of at least 1, not {max_buffer!r}")
        names = [events] if isinstance(events, str) else list(events)
        wait_for = WaitFor(*names, mode=mode, timeout_seconds=timeout_seconds, patch=patch, conditions=conditions)
        waits = waits_of(wait_for, self._run_id, max_buffer=max_buffer, state=flight.state)
        await self._commit(Register(run_id=self._run_id, epoch=flight.run.epoch, waits=waits))
        if window_seconds is not None:
            flight.window_seconds = window_seconds
        return waits[0].wait_id

    async def cancel(self, handle: str | None = None) -> None:
        """Forgets one registration, or all of the run's; what was kept for it is forgotten too.

        Args:
            handle: What `register` answered; None means all.
        """
        cancel = None if handle is None else (handle,)
        await self._commit(Register(run_id=self._run_id, epoch=self._flight().run.epoch, cancel=cancel))

    def _flight(self) -> Flight:
        flight = self._executor.flights.get(self._run_id)
        if flight is None:
            raise InvalidStateError(f"run {self._run_id} is not running here, so it cannot register waits")
        return flight

    async def _commit(self, item: Register) -> None:
        await self._executor.node.commit(register_waits, item, decide_register)
