"""A function in a process of its own, over there: called in a fresh workspace, answered when all of it is closed.

Services are made anew; what needs the store is asked of the caller. When the connection ends, so does the process.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from piecework.errors import ClosedError, StoppedError, ValidationError, describe, trace_of
from piecework.process import limits, protocol
from piecework.process.protocol import Channel
from piecework.store import values
from piecework.telemetry import logs
from piecework.workspace.calls import open_workspace
from piecework.workspace.inject import call_injected, name_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

_TERMINATED = 128 + signal.SIGTERM


def main(sock: socket.socket, app: Any) -> None:
    """Carries out one call. Called in the forked child, which exits afterwards.

    Args:
        sock: This end of the channel.
        app: The application, or a function that makes it.

    Raises:
        SystemExit: The process was terminated.
    """
    signal.signal(signal.SIGTERM, _terminate)
    with asyncio.Runner() as runner:
        runner.run(_Callee(sock, app).serve())


def _terminate(_signum: int, _frame: object) -> None:
    raise SystemExit(_TERMINATED)


class _Callee:
    """This side of the conversation: one call, and what it asks meanwhile."""

    def __init__(self, sock: socket.socket, app: Any) -> None:
        self._sock = sock
        self._app = app
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(1)
        self._gone = asyncio.Event()
        self._task: asyncio.Task[Any] | None = None

    async def serve(self) -> None:
        """Speaks with the caller from the first word to the last."""
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._init: asyncio.Future[protocol.Init] = loop.create_future()
        self._call: asyncio.Future[protocol.Call] = loop.create_future()
        channel: Channel[Any]
        self._channel = channel = await Channel.open(self._sock, protocol.ToCallee, self._received, self._closed)
        returned = await self._carry_out(await self._init, await self._call)
        if not channel.closed:
            channel.send(returned)
            await channel.drain()
        self._task = None  # nothing is cancelled by the end of the connection from here on
        channel.close()
        await self._gone.wait()

    async def _carry_out(self, init: protocol.Init, call: protocol.Call) -> protocol.Returned:
        raised = False
        try:
            limits.enter(init)
            app = self._app if hasattr(self._app, "worker_side") else self._app()
            given = values.decode(call.given)
            fn = _find(call.function)
            async with AsyncExitStack() as stack:
                stack.enter_context(logs.bind(**call.fields))
                await stack.enter_async_context(app.worker_side(init, self._ask))
                raised, limit_bytes = True, app.settings.payload_limit_bytes
                value = await _call_it(app, fn, given)
            raised = False
            return protocol.Returned(
                value=values.encode(value, what=f"the result of {name_of(fn)}", limit_bytes=limit_bytes)
            )
        except Exception as error:  # noqa: BLE001 - told to the caller, who raises it
            return protocol.Returned(error=describe(error) | {"trace": trace_of(error)}, raised=raised)

    async def _ask(self, op: str, args: dict[str, Any]) -> Any:
        ident = next(self._ids)
        answer = self._asked[ident] = asyncio.get_running_loop().create_future()
        try:
            self._channel.send(protocol.Ask(id=ident, op=op, args=args))
            return await answer
        except ClosedError as error:
            raise StoppedError(f"the caller cannot be asked to {op}: it has ended the connection") from error
        finally:
            self._asked.pop(ident, None)

    def _received(self, message: protocol.Init | protocol.Call | protocol.Cancel | protocol.Reply) -> None:
        match message:
            case protocol.Init():
                self._init.set_result(message)
            case protocol.Call():
                self._call.set_result(message)
            case protocol.Cancel():
                self._cancel()
            case protocol.Reply():
                answer = self._asked.get(message.id)
                if answer is None or answer.done():
                    return
                if message.error is None:
                    answer.set_result(message.value)
                else:
                    answer.set_exception(protocol.revive(message.error))

    def _closed(self, _error: Exception | None) -> None:
        self._gone.set()
        self._cancel()

    def _cancel(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()


async def _call_it(app: Any, fn: Callable[..., Any], given: dict[str, Any]) -> Any:
    like = {name: given[name] for name in ("space", "user", "params", "key")}
    new = open_workspace(app, **like)
    new.fn = fn
    async with new as ws:
        return await call_injected(fn, ws, given["args"], given["kwargs"])


def _find(function: str) -> Callable[..., Any]:
    module, _, path = function.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValidationError(
            f"{function} cannot be imported in another process: {error}. Move it to a module that can be imported by "
            "its name",
            name=function,
        ) from error
    return found  # type: ignore[no-any-return]  # whatever is there; the caller has looked at it
