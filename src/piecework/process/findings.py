"""What importing an application has left behind that no fork can share: threads, event loops, sockets, database files.

A thread is not there in a worker, and what it held stays held; a socket or a database's file is there twice, and both
sides read and write what the other one takes for its own.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from piecework import process

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SQLITE = b"SQLite format 3\0"
_DATABASE_SUFFIXES = (".db", ".sqlite", ".sqlite3", ".duckdb", ".mdb")


def descriptors() -> set[int]:
    """The descriptors that this process has open."""
    return {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208 - their numbers, not their paths


def threads() -> list[str]:
    """Each thread but the main one: what it runs and in which module, or the name that native code has given it."""
    pythons = {thread.native_id: thread for thread in threading.enumerate()}
    found = []
    for task in sorted(Path("/proc/self/task").iterdir(), key=lambda task: int(task.name)):
        number = int(task.name)
        if number == os.getpid():
            continue
        thread = pythons.get(number)
        if thread is not None:
            found.append(f"thread {thread.name!r}{_work_of(thread)}")
        else:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                found.append(f"thread {(task / 'comm').read_text('utf-8', 'replace').strip()!r} of native code")
    return found


def opened_since(before: set[int]) -> list[str]:
    """Each event loop, socket and database file among the descriptors that were not there before."""
    numbers = descriptors() - before
    found = []
    for loop, owned in _loops():
        if owned & numbers:
            numbers -= owned
            found.append(f"event loop{_place_of(loop)}")
    for number in sorted(numbers):
        with contextlib.suppress(OSError):  # the one that listed them all, and is closed by now
            found += _describe(number, str(Path(f"/proc/self/fd/{number}").readlink()))
    return found


def of_import(module: str) -> list[str]:
    """Imports a module in a fresh process, with this one's path and variables; what it leaves behind there.

    Nothing is found where the import fails: whoever imports it here has the error, and its reason.
    """
    import subprocess  # late: a zygote never asks this way

    environ = os.environ | {"PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)}
    command = [sys.executable, "-P", "-m", "piecework.process.findings", module]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)  # noqa: S603 - our own interpreter and module
    found: list[str] = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else []
    return found


def _describe(number: int, target: str) -> Iterator[str]:
    if target.startswith("socket:"):
        yield f"socket{_address_of(number)}{_place_of_socket(number)}"
    elif target == "anon_inode:[eventpoll]":
        yield "event loop"
    elif target.startswith("/") and _is_database(number, target):
        yield f"database file {target}"


def _is_database(number: int, path: str) -> bool:
    if path.endswith(_DATABASE_SUFFIXES):
        return True
    with contextlib.suppress(OSError):  # it cannot be read here, such as a device
        return os.pread(number, len(_SQLITE), 0) == _SQLITE
    return False


def _address_of(number: int) -> str:
    with contextlib.suppress(OSError):
        twin = socket.socket(fileno=os.dup(number))
        with twin:
            name = twin.getsockname()
            return f" {name}" if name else ""
    return ""


def _loops() -> Iterator[tuple[Any, set[int]]]:
    """The event loops that asyncio has made, and the descriptors that are theirs."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return
    for item in gc.get_objects():
        if issubclass(type(item), asyncio.AbstractEventLoop):
            parts = (getattr(item, name, None) for name in ("_ssock", "_csock", "_selector"))
            yield item, {part.fileno() for part in parts if part is not None}


def _work_of(thread: threading.Thread) -> str:
    target: Any = getattr(thread, "_target", None)
    return f" in {target.__module__}.{target.__qualname__}" if hasattr(target, "__qualname__") else ""


def _place_of_socket(number: int) -> str:
    for module_name, name, value in _globals():
        if issubclass(type(value), socket.socket) and value.fileno() == number:
            return f" in {module_name}.{name}"
    return ""


def _place_of(value: object) -> str:
    return next((f" in {module_name}.{name}" for module_name, name, found in _globals() if found is value), "")


def _globals() -> Iterable[tuple[str, str, Any]]:
    for module_name, module in list(sys.modules.items()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            yield module_name, name, value


def _main(module: str) -> NoReturn:
    process.enter()
    before = descriptors()
    importlib.import_module(module)
    print(json.dumps([*threads(), *opened_since(before)]), flush=True)  # noqa: T201 - to whoever asked
    os._exit(0)  # what the import has left behind has no say in when this ends


if __name__ == "__main__":
    _main(sys.argv[1])
