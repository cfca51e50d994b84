"""The node's handle of one worker process: signals it by pidfd, knows when everything under its keeper is dead."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

from piecework.errors import CrashedError
from piecework.process import keeper, linux

if TYPE_CHECKING:
    from collections.abc import Callable

_LINE_LIMIT_BYTES = 64 * 1024


async def readable(descriptor: int | socket.socket) -> None:
    """Waits until a descriptor that nobody else waits on can be read."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


class Output:
    """Reads what a process prints and hands it over line by line, long lines in pieces.

    Args:
        descriptor: The reading end of the pipe; owned from here on.
        on_line: Called on the loop with each line, without its end.
    """

    def __init__(self, descriptor: int, on_line: Callable[[str], None]) -> None:
        self._descriptor = descriptor
        self._on_line = on_line
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._read)

    def finish(self) -> None:
        """Hands over what is still in the pipe and closes it; safe to call again."""
        while self._descriptor >= 0 and self._read():
            pass
        self._close()

    def _read(self) -> bool:
        try:
            data = os.read(self._descriptor, _LINE_LIMIT_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._close()
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._hand_over(line)
        if len(self._rest) > _LINE_LIMIT_BYTES:
            self._hand_over(self._rest)
            self._rest = b""
        return True

    def _close(self) -> None:
        if self._descriptor < 0:
            return
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
        if self._rest:
            self._hand_over(self._rest)
            self._rest = b""

    def _hand_over(self, line: bytes) -> None:
        self._on_line(line.decode("utf-8", "backslashreplace").removesuffix("\r"))


class Child:
    """One worker with its keeper, as the node sees them. Made by `Zygote.fork`.

    Attributes:
        space: The tenant that it serves.
        worker_pid: The worker's pid as the node numbers it.
        keeper_pid: The keeper's.
        told: What the keeper has said besides, the newest of each word; `why` is there once it has ended everything.
        on_told: Called on the loop with each message of the keeper's, after `told` has it.
        channel_socket: The node's end of the frames; whoever opens a channel on it owns it.
    """

    def __init__(
        self,
        space: str,
        channel_socket: socket.socket,
        control: socket.socket,
        pidfds: tuple[int, int],
        output: Output,
    ) -> None:
        self.space = space
        self.channel_socket = channel_socket
        self._control = control
        self._keeper, self._worker = pidfds
        self._output = output
        self.keeper_pid = linux.pid_of(self._keeper)
        self.worker_pid = linux.pid_of(self._worker)
        self._loop = asyncio.get_running_loop()
        self.told: dict[str, Any] = {}
        self.on_told: Callable[[dict[str, Any]], None] = _nobody
        self._sending = threading.Lock()
        self._dead: asyncio.Future[int | None] = self._loop.create_future()
        self._loop.add_reader(self._keeper, self._finish)
        self._loop.add_reader(self._control, self._hear)

    @classmethod
    async def meet(cls, space: str, channel_socket: socket.socket, control: socket.socket, output: Output) -> Child:
        """Waits for the keeper's first word on `control`, which brings the pidfds.

        Raises:
            CrashedError: The keeper ended before; what it printed is in the zygote's output.
        """
        control.setblocking(False)
        await readable(control)
        with contextlib.suppress(ConnectionError):
            _, descriptors, _, _ = socket.recv_fds(control, keeper.MESSAGE_BYTES, 2)
            if len(descriptors) == 2:
                return cls(space, channel_socket, control, (descriptors[0], descriptors[1]), output)
        raise CrashedError(
            f"the process for space {space!r} ended before its worker was there: the machine may be out of processes "
            "or memory; the log has what it printed",
            space=space,
        )

    @property
    def alive(self) -> bool:
        """False once everything under the keeper, and the keeper itself, has ended."""
        return not self._dead.done()

    async def dead(self) -> int | None:
        """Waits until nothing of the worker is left.

        Returns the worker's exit status, negative for the signal that killed it; None when its keeper could not tell.
        """
        return await asyncio.shield(self._dead)

    def when_dead(self, callback: Callable[[int | None], None]) -> None:
        """Has `callback` called with the exit status, once, on the loop."""
        self._dead.add_done_callback(lambda future: callback(future.result()))

    @property
    def lapsed(self) -> bool:
        """True when its keeper has ended it because the node's lease was not renewed in time."""
        return self.told.get("why") == keeper.LEASE

    @property
    def reason(self) -> dict[str, str] | None:
        """Which limit its keeper has ended it for, as `code` and `message`; None where it was none."""
        return self.told.get("reason")

    def signal(self, signum: int) -> None:
        """Sends a signal to the worker itself; does nothing when it is gone."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._worker, signum)

    @property
    def keeper_state(self) -> str:
        """What the keeper is doing: "running", "stopped" when somebody has stopped it, or "dead".

        A keeper that is stopped sees to nothing until it goes on; `terminate` and `kill` have it go on.
        """
        if not self.alive:
            return "dead"
        return "stopped" if linux.is_stopped(self.keeper_pid) else "running"

    def terminate(self) -> None:
        """Sends SIGTERM to everything under the keeper."""
        self._rouse()
        self.tell({"do": "terminate"})

    def kill(self) -> None:
        """Has the keeper kill everything under it, until nothing is left; `dead` tells when."""
        self._rouse()
        if not self.tell({"do": "kill"}):
            with self._sending, contextlib.suppress(OSError):
                self._control.shutdown(socket.SHUT_WR)  # this word needs no room

    def renew(self, until: float | None) -> None:
        """Tells the keeper when the node's lease lapses: seconds of CLOCK_BOOTTIME, or None for never. Any thread."""
        self.tell({"do": "lease", "until": until})

    def tell(self, command: dict[str, Any]) -> bool:
        """Tells the keeper to do something, without waiting; from any thread. False when it cannot be told."""
        # The lock: a descriptor that is closed meanwhile could be somebody else's by the time it is written to.
        with self._sending, contextlib.suppress(OSError):
            self._control.send(json.dumps(command).encode())
            return True
        return False

    def _rouse(self) -> None:
        if self.alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self._keeper, signal.SIGCONT)

    def _hear(self) -> bool:
        """Takes one message of the keeper's; answers whether there may be another."""
        try:
            data = self._control.recv(keeper.MESSAGE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._control)
            return False
        message = json.loads(data)
        self.told |= message
        self.on_told(message)
        return True

    def _finish(self) -> None:
        self._loop.remove_reader(self._keeper)
        while self._hear():
            pass
        self._loop.remove_reader(self._control)
        with self._sending:
            self._control.close()
        # A node that is the first process of a container inherits the keepers of a zygote that has died.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self._keeper, os.WEXITED | os.WNOHANG)
        os.close(self._keeper)
        os.close(self._worker)
        self._output.finish()
        if not self._dead.done():
            status = self.told.get("status")
            self._dead.set_result(None if status is None else os.waitstatus_to_exitcode(status))


def _nobody(_message: dict[str, Any]) -> None:
    """Nobody listens to what the keeper says."""
