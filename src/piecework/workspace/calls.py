"""Functions in workspaces that nobody waits for, and one for each of many items."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from piecework.errors import ValidationError
from piecework.workspace.data import data_of
from piecework.workspace.inject import check_callable, name_of
from piecework.workspace.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from piecework.workspace.opening import NewWorkspace
    from piecework.workspace.supervise import Handle


def spawn(new: NewWorkspace, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Handle:
    """Starts a function in a new workspace, supervised; see `NewWorkspace.spawn`.

    Raises:
        TypeError: `fn` cannot be called; nothing was opened.
        StoppedError: The app is ending.
    """
    check_callable(fn)
    transaction = None if new.caller is None else new.host.current_transaction(new.caller)
    new.caller = None
    if transaction is None:
        return _joined(
            new, new.host.supervisor.spawn(lambda: Workspace.run(new, fn, *args, **kwargs), name=name_of(fn))
        )
    committed = asyncio.Event()

    async def later() -> Any:
        """Starts it when the transaction has committed."""
        await committed.wait()
        return await Workspace.run(new, fn, *args, **kwargs)

    handle = _joined(new, new.host.supervisor.spawn(later, name=name_of(fn)))
    transaction.after_commit(committed.set)
    transaction.after_rollback(handle.cancel)
    return handle


def _joined(new: NewWorkspace, handle: Handle) -> Handle:
    data = data_of(new.overrides)
    if data is not None:
        data.joined_by(handle)
    return handle


async def map_items(
    make: Callable[[], NewWorkspace], fn: Callable[..., Any], items: Iterable[Any], *, limit: int
) -> list[Any]:
    """Calls a function for each item, each in a workspace that `make` makes; see `NewWorkspace.map`.

    Raises:
        ValidationError: `limit` is below one.
        TypeError: `fn` cannot be called; nothing was opened.
    """
    check_callable(fn)
    if limit < 1:
        raise ValidationError(f"limit is {limit}: at least one workspace has to be open at a time", limit=limit)
    results: dict[int, Any] = {}
    numbered = enumerate(items)

    async def map_some() -> None:
        """Takes items as long as there are any."""
        for index, item in numbered:
            results[index] = await Workspace.run(make(), fn, item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(limit):
                group.create_task(map_some())
    except BaseExceptionGroup as errors:
        # Callers write `except ValueError`: the first failure is raised as itself, further ones are noted on it.
        first, *others = errors.exceptions
        for other in others:
            first.add_note(f"and, in another workspace: {type(other).__name__}: {other}")
        raise first from None
    return [results[index] for index in sorted(results)]
