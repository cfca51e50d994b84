"""The hooks of a workflow: functions of the user's that hear of the lives of its runs.

Each is called by the node that has the run, plain or async, and awaited up to a limit of time. What a hook raises never
changes what a run came to, but for the two that come before its stages: a run whose `on_prepare` fails has failed, and
one whose `on_resume` fails is paused again. In the order of a life:

1. `on_dispatch(result)`, for each decision about an event at one of the workflow's triggers or waiting runs.
2. `on_prepare(ctx)`, before the first stage; again where a crash came before the first checkpoint.
3. `on_resume(ctx)`, before the first stage of each resume.
4. `on_complete(result)`, once the end of a run is durable. Its services are still there, and it still has its place;
   whoever waits for it is told afterwards. At least once: again where a crash came before the store had noted the call.
5. `on_cleanup()`, once the run has let go of everything and its place is free; the next run of its slot starts
   afterwards. At least once, too.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from piecework.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What a workflow wants to hear of its runs; all of it is optional.

    Attributes:
        on_prepare: Called with a `HookContext` before the first stage.
        on_complete: Called with the `Result` of a run that has completed, failed or was aborted; never at a pause.
        on_resume: Called with a `HookContext` before a resumed run goes on.
        on_cleanup: Called with nothing when a run has let go of everything.
        on_dispatch: Called with a `DispatchResult` for each decision about an event.

    Raises:
        ValidationError: One of them cannot be called.
    """

    on_prepare: Callable[..., Any] | None = None
    on_complete: Callable[..., Any] | None = None
    on_resume: Callable[..., Any] | None = None
    on_cleanup: Callable[..., Any] | None = None
    on_dispatch: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        for given in fields(self):
            fn: object = getattr(self, given.name)
            if fn is not None and not callable(fn):
                raise ValidationError(f"{given.name} has to be a function, plain or async, not {fn!r:.80}")

    def given(self) -> dict[str, Any]:
        """All of them by name, as `register` takes them."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    @property
    def of_end(self) -> bool:
        """Whether it wants to hear of the end of a run."""
        return self.on_complete is not None or self.on_cleanup is not None


NO_HOOKS = Hooks()
