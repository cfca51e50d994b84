"""The states of runs, for whoever is not one of their steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from piecework.container.state import State, merge
from piecework.errors import ClosedError, ValidationError
from piecework.store.opening import check_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from piecework.store.contract import Store
    from piecework.workflow.executor import Executor
    from piecework.workflow.flight import Flight
    from piecework.workflow.runtime import Runtime


class RunStore:
    """The state of one run: as of its last commit, with the patches that were sent to it since.

    Args:
        run_id: Whose.
        runtime: Which has the run.
    """

    def __init__(self, run_id: str, runtime: Runtime) -> None:
        self.run_id = run_id
        self._runtime = runtime
        self._state = State()

    def get(self) -> dict[str, Any]:
        """A copy of the state. Of a run that executes in another process it is as old as `StoreRegistry.get`."""
        return self._state.get()

    async def set(self, patch: Mapping[str, Any]) -> None:
        """Merges a patch into the state of a live or paused run: the same as `Runtime.signal`.

        Raises:
            InvalidStateError: The run has ended; nothing was changed.
            NotFoundError: There is no such run.
            ValidationError: The patch is not acceptable.
        """
        (await self._runtime.signal(self.run_id, patch)).unwrap()
        self.take(merge(self._state.get(), dict(patch)))

    def subscribe(self, fn: Callable[[], None]) -> Callable[[], None]:
        """Has `fn()` called after each change that is seen here.

        Returns:
            A function that ends it.
        """
        return self._state.subscribe(fn)

    def take(self, data: dict[str, Any]) -> None:
        """Puts a newer state in place."""
        self._state.commit(data)

    def follow(self, flight: Flight) -> None:
        """Has the state of a run that executes here from now on, with each of its commits."""
        self.take(flight.state)
        flight.followers.append(self.take)


class StoreRegistry:
    """Names the store of a `Runtime`, and gives the states of its runs.

    Args:
        store: `sqlite:///FILE` or `postgresql://…`; or a store that is not open, whose address is taken.

    Raises:
        ValidationError: It is no address.
    """

    def __init__(self, store: str | Store) -> None:
        url = store if isinstance(store, str) else getattr(store, "url", None)
        if not isinstance(url, str) or not url:
            raise ValidationError(f"StoreRegistry needs the address of a store, not {store!r:.80}: 'sqlite:///FILE'")
        if isinstance(store, str):
            check_kind(url)
        self.url = url
        self._runtime: Runtime | None = None
        self._executor: Executor | None = None
        self._known: dict[str, RunStore] = {}

    async def get(self, run_id: str) -> RunStore:
        """The state of a run; the same object until it is released.

        Raises:
            ClosedError: No runtime is open over this registry.
            NotFoundError: There is no such run.
        """
        runtime, executor = self._runtime, self._executor
        if runtime is None or executor is None:
            raise ClosedError("no runtime is open over this StoreRegistry: register a workflow, or enter the runtime")
        found = self._known.get(run_id) or RunStore(run_id, runtime)
        flight = executor.flights.get(run_id)
        if flight is None:
            data = await runtime.state(run_id)
            for _, patch in await executor.node.signals_of(run_id):
                data = merge(data, msgspec.json.decode(patch))
            found.take(data)
        elif run_id not in self._known:
            found.follow(flight)
        return self._known.setdefault(run_id, found)

    def release(self, run_id: str) -> None:
        """Forgets what was given for a run, which is not touched by that; unknown ids: nothing."""
        self._known.pop(run_id, None)

    def clear(self) -> None:
        """Forgets what was given for all runs."""
        self._known.clear()

    def attach(self, runtime: Runtime, executor: Executor) -> None:
        """Says whose runs these are, and who carries them."""
        self._runtime, self._executor = runtime, executor
        executor.on_boarded = self._boarded

    def detach(self) -> None:
        """Says that the runtime has stopped."""
        self._runtime = self._executor = None
        self.clear()

    def _boarded(self, flight: Flight) -> None:
        """Has a run that begins, or goes on, to execute here followed by who asked for it."""
        known = self._known.get(flight.run.run_id)
        if known is not None:
            known.follow(flight)
