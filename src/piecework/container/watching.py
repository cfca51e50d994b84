"""Telling what happens to services: events of a container for those who look on, changes of one for its watchers.

Whoever is told cannot hold anything up: what they raise is a warning, and they are told after the change is visible.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from piecework.errors import ValidationError, describe
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from piecework.container.artifact import Artifact
    from piecework.container.container import Container

BUILD_START: Final = "build:start"
BUILD_COMPLETE: Final = "build:complete"
BUILD_ERROR: Final = "build:error"
INVALIDATED: Final = "artifact:invalidated"
DISPOSED: Final = "artifact:disposed"
REGISTERED: Final = "artifact:registered"
STREAM_EMIT: Final = "stream:emit"
CONTAINER_DISPOSE: Final = "container:dispose"
EVENTS: Final = (
    BUILD_START,
    BUILD_COMPLETE,
    BUILD_ERROR,
    INVALIDATED,
    DISPOSED,
    REGISTERED,
    STREAM_EMIT,
    CONTAINER_DISPOSE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a container.

    Attributes:
        event: What: one of `EVENTS`.
        key: The service's name; None when it is about the container.
        param: What names it in its family, or None.
        attempt: Of a build, from 1.
        version: Of what was built, or published by a stream.
        duration_seconds: How long a build took.
        error: Why a build failed.
        value: What a stream published.
    """

    event: str
    key: str | None = None
    param: str | None = None
    attempt: int | None = None
    version: int | None = None
    duration_seconds: float | None = None
    error: BaseException | None = None
    value: Any = None

    @property
    def duration(self) -> float | None:
        """The same as `duration_seconds`."""
        return self.duration_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that became of one service.

    Attributes:
        event: built, rebuilt, invalidated, error or stream.
        key: Its name.
        param: What names it in its family, or None.
        ok: True when there is an instance that may be used.
        instance: What is there now, or None.
        error: Why it could not be built.
        version: How often it has been built.
    """

    event: str
    key: str
    param: str | None = None
    ok: bool = True
    instance: Any = None
    error: BaseException | None = None
    version: int = 0


class Watch:
    """Looks at one service without ever building it; `Container.watch` makes one."""

    __slots__ = ("_home", "_key", "_params")

    def __init__(self, home: Container, key: tuple[str, str | None], params: Any) -> None:
        self._home = home
        self._key = key
        self._params = params

    def get(self) -> Any:
        """The instance there is, an outdated one as long as its successor is not ready; None when there is none."""
        return self._home.peek(self._key[0], self._params)

    def subscribe(self, fn: Callable[[Change], Any]) -> Callable[[], None]:
        """Has `fn` called after each change; from then on a service that went stale is rebuilt at once.

        Args:
            fn: A plain function of a `Change`.

        Returns:
            A function that ends it.

        Raises:
            ValidationError: It is no plain function.
            ClosedError: The container is closed.
        """
        check_listener(fn, f"watch({self._key[0]!r})", name=self._key[0])
        self._home.check_open()
        self._home.observe()
        watchers = self._home.graph.watchers.setdefault(self._key, [])
        watchers.append(fn)

        def unsubscribe() -> None:
            if fn in watchers:
                watchers.remove(fn)

        return unsubscribe


def check_event(event: Any) -> None:
    """Refuses the name of an event that there is not.

    Raises:
        ValidationError: It lists the names.
    """
    if event not in EVENTS:
        raise ValidationError(
            f"there is no event {event!r} of a container: choose one of {', '.join(EVENTS)}", event=event
        )


def check_listener(fn: Any, where: str, **data: Any) -> None:
    """Refuses what cannot be called, or would have to be awaited.

    Raises:
        ValidationError: It says which.
    """
    if not callable(fn):
        raise ValidationError(f"{where} needs a function, not {fn!r:.80}", **data)
    if inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__):
        raise ValidationError(
            f"{where} needs a plain function, and {getattr(fn, '__qualname__', fn)!r} has to be awaited: let it start "
            "a task that somebody owns, or put what it is told into a queue",
            **data,
        )


def tell(listeners: Iterable[Callable[[Any], Any]], what: Event | Change) -> None:
    """Calls everybody who listens; one that raises stops nobody."""
    for fn in tuple(listeners):
        try:
            fn(what)
        except Exception as error:  # noqa: BLE001 - whoever looks on does not take part; it is told as a warning
            signals.emit(
                signals.LISTENER_FAILED, level="warning", event_name=what.event, service=what.key, error=describe(error)
            )


def tell_watchers(artifact: Artifact, event: str, error: BaseException | None = None) -> None:
    """Tells those who watch a service what became of it."""
    if artifact.watchers:
        made = artifact.made
        tell(
            artifact.watchers,
            Change(
                event=event,
                key=artifact.recipe.name,
                param=artifact.param,
                ok=artifact.fresh,
                instance=None if made is None else made.instance,
                error=error,
                version=artifact.version,
            ),
        )
