"""Functions in fresh workspaces: called, started without waiting, and one call for each of many items."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from piecework.errors import ValidationError
from piecework.workspace.data import data_of
from piecework.workspace.inject import check_callable, name_of
from piecework.workspace.opening import NewWorkspace
from piecework.workspace.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from piecework.container.container import Container
    from piecework.container.state import State as RunState
    from piecework.workspace.context import Host
    from piecework.workspace.supervise import Handle


def open_workspace(
    host: Host,
    *,
    parents: Sequence[Container] = (),
    space: str | None = None,
    user: Any = None,
    params: Mapping[str, Any] | None = None,
    key: str | None = None,
    run_id: str | None = None,
    logger: Any = None,
    overrides: Mapping[str, Any] | None = None,
    state: RunState | None = None,
) -> NewWorkspace:
    """Opens a fresh root workspace with `async with`; it costs a microsecond until a service is asked for.

    Args:
        host: The app.
        parents: Where it looks for services, in order; empty means the app's container. A workflow's own container
            comes before the app's.
        space: The tenant it works for, or None.
        user: Whoever it works for.
        params: What `ws.params` is.
        key: The idempotency key, or None.
        run_id: The run that it belongs to, or None.
        logger: What `ws.logger` is; None means one with the workspace's id.
        overrides: What stands for services in it, by name; names that it does not know are left out.
        state: What its services select from; None where there is none.

    Raises:
        ClosedError: The app is not open.
    """
    new = NewWorkspace(host, space=space, user=user, params=params, key=key)
    new.parents = tuple(parents)
    new.run_id = run_id
    new.logger = logger
    new.overrides = overrides
    new.state = state
    return new


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


async def run_in_new_workspace(
    host: Host,
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    """Calls a function in a fresh workspace of the app; see `Workspace.run_in_new_workspace`.

    Raises:
        TypeError: `fn` cannot be called; nothing was opened.
    """
    return await Workspace.run(open_workspace(host, overrides=overrides), fn, *args, **(kwargs or {}))


def spawn_in_new_workspace(
    host: Host,
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
) -> Handle:
    """Starts a function in a fresh workspace of the app; see `Workspace.spawn_in_new_workspace`.

    Raises:
        TypeError: `fn` cannot be called; nothing was opened.
        StoppedError: The app is ending.
    """
    return open_workspace(host, overrides=overrides).spawn(fn, *args, **(kwargs or {}))


async def map_in_workspaces(
    host: Host,
    fn: Callable[..., Any],
    items: Iterable[Any],
    *,
    limit: int = 10,
    overrides: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Calls a function for each item, each in a fresh workspace; see `Workspace.map_in_workspaces`.

    Raises:
        ValidationError: `limit` is below one.
        TypeError: `fn` cannot be called; nothing was opened.
    """
    return await open_workspace(host, overrides=overrides).map(fn, items, limit=limit)
