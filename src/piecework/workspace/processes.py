"""Functions in processes of their own, as the caller sees them: started, asked for their result, killed for real.

The first call starts a zygote, a process that has the app imported; each call is a fork of it under a keeper of its
own. A call is over when nothing of it runs any more, whatever became of it: its process, and all that this started.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piecework import process
from piecework.container.closing import outlast
from piecework.errors import (
    ClosedError,
    CpuLimitError,
    CrashedError,
    InvalidStateError,
    MemoryLimitError,
    ProcessLimitError,
    RemoteError,
    StoppedError,
    ValidationError,
    describe,
)
from piecework.process import protocol
from piecework.process.launch import Zygote
from piecework.process.limits import Limits
from piecework.process.protocol import Channel
from piecework.store import values
from piecework.telemetry import logs
from piecework.workspace.inject import name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from piecework.config import Settings
    from piecework.process.address import Address
    from piecework.process.child import Child
    from piecework.process.lease import Lease
    from piecework.workspace.context import Host
    from piecework.workspace.opening import NewWorkspace

ENTRY = "piecework.workspace.remote:main"
_log = logs.get_logger("piecework.process")


class ProcessCalls:
    """Calls functions of an app in processes of their own.

    Args:
        host: The app.
        settings: The grace between a cancel and the kill.
        make_init: What is in force here, for a space or none.
        address: Where another process imports the app from; the argument says what for.
        lease: When calls end without another word of the node.
    """

    def __init__(
        self,
        host: Host,
        settings: Settings,
        *,
        make_init: Callable[[str | None], protocol.Init],
        address: Callable[[str], Address],
        lease: Lease,
    ) -> None:
        self._host = host
        self._settings = settings
        self._make_init = make_init
        self._address = address
        self._lease = lease
        self._lock = asyncio.Lock()
        self._zygote: Zygote | None = None
        self._stopped = False

    async def call(self, new: NewWorkspace, fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Calls a function in a fresh process; see `NewWorkspace`.

        Args:
            new: What its workspace is like. One of that kind is open here meanwhile, and counts.
            fn: An importable function.
            args: JSON values.
            kwargs: JSON values.

        Raises:
            ValidationError: The function is not importable, or something is no JSON value; nothing was started.
            InvalidStateError: This process is one of its own already.
            RemoteError: Whatever the function raised.
            CrashedError: Its process ended by itself, or was killed.
            StoppedError: The app is ending.
            AppImportError: The app cannot be imported in another process.
        """
        if process.inside():
            raise InvalidStateError(
                f"{name_of(fn)} cannot get a process of its own: this one is a worker's or a call's already. Call it "
                "here with isolation='scope'"
            )
        function = importable(fn)
        limit = self._settings.payload_limit_bytes
        given = {"args": list(args), "kwargs": kwargs, "user": new.user, "params": dict(new.params or {})}
        given |= {"space": new.space, "key": new.key}
        body = values.encode(given, what=f"what {name_of(fn)} is given", limit_bytes=limit)
        new.isolation = "scope"  # of the one that stands for it here
        async with new:
            zygote = await self._ready()
            message = protocol.Call(function=function, given=body, fields=_plain(logs.bound()))
            call = _Call(self._host, name_of(fn), self._settings)
            return await call.carry_out(zygote, self._make_init(new.space), message)

    async def stop(self) -> None:
        """Kills what is left and ends the zygote."""
        self._stopped = True
        async with self._lock:
            if self._zygote is not None:
                await self._zygote.stop()

    async def _ready(self) -> Zygote:
        async with self._lock:
            if self._stopped:
                raise StoppedError("the app is stopping and starts no more processes")
            if self._zygote is not None and self._zygote.alive:
                return self._zygote
            if self._zygote is not None:
                await self._zygote.stop()
            address = self._address("runs functions in processes of their own")
            paths = [entry or str(Path.cwd()) for entry in sys.path]
            self._zygote = Zygote(
                address.target,
                paths=paths,
                main_path=address.main_path,
                lease=self._lease,
                on_output=_show_output,
                limits=Limits.of(self._settings),
            )
            await self._zygote.start()
            return self._zygote


class _Call:
    """One call, from the fork until nothing of it is left."""

    def __init__(self, host: Host, name: str, settings: Settings) -> None:
        self._host = host
        self._name = name
        self._grace_seconds = settings.space_grace_seconds
        self._cpu_seconds = settings.space_run_cpu_seconds
        self._returned: asyncio.Future[protocol.Returned] = asyncio.get_running_loop().create_future()
        self._answers: set[asyncio.Task[None]] = set()
        self._channel: Channel[Any] | None = None
        self._child: Child | None = None

    async def carry_out(self, zygote: Zygote, init: protocol.Init, call: protocol.Call) -> Any:
        self._child = child = await zygote.fork(f"of the call {self._name}", ENTRY)
        child.on_told = self._metered
        try:
            self._channel = await Channel.open(child.channel_socket, protocol.ToCaller, self._received, self._closed)
            with suppress(ClosedError):  # it has ended already: its status tells
                self._channel.send(init)
                self._channel.send(call)
            returned = await self._returned
        finally:
            ending = asyncio.create_task(self._end(child), name=f"end of the call {self._name}")
            cancelled = await outlast(ending)
            if cancelled is not None:
                raise cancelled
        if returned.error is None:
            return values.decode(returned.value)
        if not returned.raised:
            raise protocol.revive(returned.error)
        error = returned.error
        raise RemoteError(
            f"{error['type']}: {error['message']}",
            type=error["type"],
            trace=error["trace"],
            remote_code=error["code"],
        )

    async def _end(self, child: Child) -> None:
        """Lets it end, asks it to, and kills what is there after the grace."""
        if self._channel is not None and not self._channel.closed and not self._heard:
            self._channel.send(protocol.Cancel(run_id=self._name, reason="ABORTED"))
        dead = asyncio.ensure_future(child.dead())
        done, _ = await asyncio.wait({dead}, timeout=self._grace_seconds)
        if not done:
            child.kill()
            await dead
        for task in tuple(self._answers):
            task.cancel()
        if self._answers:
            await asyncio.wait(self._answers)
        if self._channel is not None:
            self._channel.close()

    @property
    def _heard(self) -> bool:
        return self._returned.done() and not self._returned.cancelled()

    def _received(self, message: protocol.Returned | protocol.Ask) -> None:
        if isinstance(message, protocol.Returned):
            if not self._returned.done():
                self._returned.set_result(message)
            return
        task = asyncio.get_running_loop().create_task(self._answer(message), name=f"answer to {self._name}")
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _answer(self, ask: protocol.Ask) -> None:
        try:
            reply = protocol.Reply(id=ask.id, value=await self._do(ask.op, ask.args))
        except Exception as error:  # noqa: BLE001 - told to the one who asked
            reply = protocol.Reply(id=ask.id, error=describe(error))
        if self._channel is not None:
            with suppress(ClosedError):  # it has ended meanwhile
                self._channel.send(reply)

    async def _do(self, op: str, args: dict[str, Any]) -> Any:
        if op == "enqueue":
            return await self._host.enqueue(args.pop("name"), args.pop("args"), **args)
        if op == "jobs.value":
            return {"value": await self._host.job_value(args["run_id"])}
        if op == "notify":
            return await self._host.keep_notification(**args)
        if op != "publish":
            raise ValidationError(f"a call in a process of its own may publish, enqueue and notify, not {op!r}")
        receipt = await self._host.publish(args["type"], args["payload"], id=args["id"], space=args["space"])
        return {
            "event_id": receipt.event_id,
            "dispatched": [dataclasses.asdict(result) for result in receipt.dispatched or ()],
        }

    def _closed(self, error: Exception | None) -> None:
        if self._returned.done() or self._child is None:
            return
        if error is not None and not isinstance(error, ConnectionError):
            self._returned.set_exception(error)
            return
        # What has hung up is mostly ending by itself, and its keeper then tells its exit status; a command that crosses
        # this would take that word away.
        late = asyncio.get_running_loop().call_later(self._grace_seconds, self._child.kill)
        self._child.when_dead(lambda _: late.cancel())
        self._child.when_dead(self._died)

    def _metered(self, told: dict[str, Any]) -> None:
        limit = self._cpu_seconds
        if limit is None or self._returned.done() or told.get("usage", {}).get("cpu_seconds", 0) <= limit:
            return
        self._returned.set_exception(
            CpuLimitError(
                f"the call {self._name} used more than {limit:g} s of processor time: do less at once, or raise "
                "space_run_cpu_seconds",
                name=self._name,
            )
        )

    def _died(self, status: int | None) -> None:
        reason = None if self._child is None else self._child.reason
        if not self._returned.done() and reason is not None:
            kind = MemoryLimitError if reason["code"] == MemoryLimitError.code else ProcessLimitError
            self._returned.set_exception(kind(f"the call {self._name} used {reason['message']}", name=self._name))
        if not self._returned.done():
            self._returned.set_exception(
                CrashedError(
                    f"the process of the call {self._name} {_how(status)} before it had returned: look at what it "
                    "printed, which stands in the log",
                    name=self._name,
                    status=status,
                )
            )


def importable(fn: Any) -> str:
    """Tells where another process finds a function, as "module:qualified name".

    Raises:
        ValidationError: It is not found there: a lambda, a nested function, a method of an object, a partial.
    """
    module_name, path = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    found: Any = sys.modules.get(module_name) if module_name else None
    for part in (path or "").split("."):
        found = getattr(found, part, None)
    if not path or found is not fn:
        raise ValidationError(
            f"{name_of(fn)} cannot be imported in another process: isolation='process' needs a function at the top of "
            "a module, by its own name. Move it there, and hand what it closes over to it as arguments",
            name=name_of(fn),
        )
    return f"{module_name}:{path}"


def _how(status: int | None) -> str:
    if status is None:
        return "ended"
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if isinstance(value, str | int | float | bool)}


def _show_output(line: str, _title: str | None) -> None:
    """What a call prints goes to the log, line by line."""
    _log.info(line)
