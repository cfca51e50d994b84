"""The runtime by itself: workflows over a bus and a store, without an app around them.

    runtime = Runtime(bus=EventBus(), store_registry=StoreRegistry("sqlite:///state.db"))
    await runtime.register(workflow, mode=Transient(concurrency=10))
    await runtime.stop()

It is the door that an open app has as `app.runtime`, and the same code: this one has an app of its own inside, which
is opened with the first `register` or `invoke`, or by `async with`, and closed by `stop`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from piecework.bus.subscriptions import EventBus
from piecework.errors import ClosedError, ConflictError, StoppedError, ValidationError
from piecework.workflow.runtime import Runtime as Door
from piecework.workflow.store_registry import StoreRegistry
from piecework.workflow.timeline_store import Recorder, TimelineStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from piecework.app import App
    from piecework.config import Settings
    from piecework.container.registry import Service


class Runtime(Door):
    """Runs workflows. An open app has one as `app.runtime`; made by itself it is a node of its store.

    Nothing is opened by making it: the first `register` or `invoke` does, or `async with runtime:`. Whoever opened it
    stops it: `await runtime.stop()`, or the end of the `async with`, ends or interrupts its runs and closes everything.
    Afterwards it cannot be opened again; another Runtime over the same store goes on where this one stopped.

    Args:
        bus: What is emitted on it starts runs, and its subscribers see accepted events. One bus belongs to one runtime.
        store_registry: Names the store, and gives the states of runs.
        timeline_store: Where timelines are recorded too, whenever a run pauses or ends. Whoever made it closes it.
        services: One instance of each, in all runs.
        env: The global layer of variables; the process environment when omitted.
        settings: The numbers; read from the environment when omitted.

    Raises:
        ValidationError: The bus or the store registry is none, or a service is not well-formed.
        DuplicateKeyError: Two services have one id, or one is reserved.
    """

    _app: App | None = None

    def __init__(
        self,
        *,
        bus: EventBus,
        store_registry: StoreRegistry,
        timeline_store: TimelineStore | None = None,
        services: Iterable[Service] = (),
        env: Mapping[str, str | None] | None = None,
        settings: Settings | None = None,
    ) -> None:
        from piecework.app import App

        if not isinstance(bus, EventBus) or not isinstance(store_registry, StoreRegistry):
            raise ValidationError("a Runtime needs a bus=EventBus() and a store_registry=StoreRegistry(URL)")
        self._stopped = self._closing = False
        self._opening = asyncio.Lock()
        self._registry_of_stores = store_registry
        self._timeline_store = timeline_store
        self._recorder: Recorder | None = None
        self._app = App("runtime", store=store_registry.url, services=services, env=env, settings=settings)
        self._app.bus = bus
        self._app.within(self)

    def __getattr__(self, name: str) -> Any:
        """Says of what only an open runtime has that this one is not open."""
        if name.startswith("__") or self._app is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise ClosedError("the runtime is not open: register a workflow, or use it inside `async with runtime:`")

    @staticmethod
    async def create_test_timeline_store(name: str | None = None) -> TimelineStore:
        """An open timeline store in a temporary file, for tests. `close` removes it.

        Args:
            name: For people: two stores never see each other's entries, whatever their names.
        """
        made = TimelineStore.for_test(name)
        await made.open()
        return made

    async def _ready(self) -> None:
        app = self._app
        if app is None or self._closing:
            return
        async with self._opening:
            if app.is_open or self._closing:
                return
            if self._stopped:
                raise StoppedError("the runtime has stopped: make another one over the same store")
            if app.bus.connected:
                raise ConflictError("the bus belongs to another open runtime or app: give each its own EventBus")
            await app.__aenter__()
            self._registry_of_stores.attach(self, self._executor)
            if self._timeline_store is not None:
                self._recorder = Recorder(self._store, self._timeline_store, self._node.news)

    async def stop(self, *, grace_seconds: float | None = None) -> None:
        """Stops it and closes all that it opened; see `Door.stop`. Stopping twice is harmless.

        Args:
            grace_seconds: How long runs may go on; `close_timeout_seconds` when not given.

        Raises:
            InvalidStateError: It is called by a step of a run, which it would interrupt.
            ExceptionGroup: Something failed to close; all was closed.
        """
        app = self._app
        if app is None or self._closing:
            await super().stop(grace_seconds=grace_seconds)
            return
        if app.is_open:
            self._check_outside("stop the runtime", "Have it stopped where it was opened")
        async with self._opening:
            self._stopped = True
            if not app.is_open:
                return
            self._closing = True
            try:
                try:
                    await super().stop(grace_seconds=grace_seconds)
                finally:
                    recorder, self._recorder = self._recorder, None
                    if recorder is not None:
                        await recorder.stop()
            finally:
                self._registry_of_stores.detach()
                await app.__aexit__(None, None, None)
                self._closing = False

    async def __aenter__(self) -> Self:
        """Opens it, unless it is open.

        Raises:
            StoppedError: It has been stopped.
            StoreError: The store cannot be opened, or somebody else has it.
        """
        await self._ready()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops it."""
        await self.stop()
