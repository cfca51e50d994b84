"""The zygote: imports the application once, then forks a keeper with a worker whenever the node asks.

Started by `launch.Zygote` as `python -P -m piecework.process.zygote`. It never runs an event loop and never waits for
a child: a fork copies what is there, and a loop, a thread or a lock that is held would be there in every worker. What
an import leaves behind of that kind is told to the node; where it is a thread, which no fork has, another zygote is
started without the application (a *base* zygote), and each worker imports it for itself.

It ends when the node's end of the request socket closes; the kernel ends it when the node dies.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import random
import resource
import select
import signal
import socket
import sys
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from piecework import process
from piecework.process import findings, keeper, launcher, limits, linux
from piecework.process.launcher import Mode

if TYPE_CHECKING:
    from collections.abc import Callable

MESSAGE_BYTES = 128 * 1024
_TRACE_CHARACTERS = 16_000
_FINDINGS = 50
_FILES_BYTES = 32 * 1024
_BASE = ("piecework", "piecework.app", "piecework.services.database")
_MAIN = "__mp_main__"
_LIBRARY = os.path.dirname(os.__file__) + os.sep  # noqa: PTH120 - a plain text to begin with
_NUMERIC_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def main() -> NoReturn:
    """Runs the zygote until its node is done with it."""
    import argparse  # late: a node reads this file for its constants only

    parser = argparse.ArgumentParser(prog="piecework.process.zygote", description="Started by a node, not by hand.")
    parser.add_argument("--requests", type=int, required=True, help="descriptor of the request socket")
    parser.add_argument("--boot", type=int, required=True, help="descriptor that the rest is read from")
    parser.add_argument("--node", type=int, required=True, help="pid of the node")
    given = parser.parse_args()
    process.enter()
    linux.die_with_parent(signal.SIGKILL, given.node)
    linux.become_subreaper()
    linux.forbid_inspection()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests = socket.socket(fileno=given.requests)
    with open(given.boot, encoding="utf-8") as file:  # noqa: PTH123 - a descriptor has no path
        boot = json.load(file)
    mode = launcher.probe() if boot["namespaces"] else Mode.SESSION
    before = findings.descriptors()
    try:
        app = _prepare(boot)
    except BaseException as error:  # noqa: BLE001 - told to the node, which raises it; a module may even call exit()
        _answer(requests, {"error": _describe(error), "files": _files(error)})
        _end(1)
    threads = findings.threads()
    found = [*threads, *findings.opened_since(before)]
    ready = {"ready": True, "mode": mode, "threads": bool(threads), "findings": found[:_FINDINGS]}
    _answer(requests, ready | {"files": _files()})
    _Zygote(requests, app, mode).serve()
    _end(0)


def _prepare(boot: dict[str, Any]) -> Any:
    """Makes this process look like the node as far as imports can tell, and imports the application.

    A base zygote answers a function that imports it.
    """
    os.environ.clear()
    # Threads of a numeric library would not survive the fork, and what they hold stays held.
    os.environ.update(boot["environ"] | dict.fromkeys(_NUMERIC_THREADS, "1"))
    sys.path[:] = boot["paths"]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is the interpreter's own, on a pipe
    if boot["base"]:
        app = _import_later(boot)
        for module in _BASE:
            importlib.import_module(module)
    else:
        app = _load(boot["target"], boot["main_path"])
    limits.prepare()
    for name in _NUMERIC_THREADS:
        os.environ.pop(name)
    os.environ.update({name: value for name, value in boot["environ"].items() if name in _NUMERIC_THREADS})
    return app


def _import_later(boot: dict[str, Any]) -> Callable[[], Any]:
    environ = dict(boot["environ"])

    def load() -> Any:
        """Imports the application in a worker, with the variables that it has in a zygote."""
        layer = dict(os.environ)
        os.environ.clear()
        os.environ.update(environ)
        try:
            app = _load(boot["target"], boot["main_path"])
        finally:
            os.environ.clear()
            os.environ.update(layer)
        return app if hasattr(app, "worker_side") else app()

    return load


def _load(target: str, main_path: str | None) -> Any:
    name, _, attribute = target.partition(":")
    if main_path is not None:
        _import_script(main_path)
    value: Any = importlib.import_module(_MAIN if name == "__main__" and main_path is not None else name)
    for part in attribute.split("."):
        value = getattr(value, part)
    return value


def _import_script(path: str) -> None:
    """Imports the script that the node runs as `__main__`, under the name that multiprocessing gives such a script.

    Its `if __name__ == "__main__"` block stays out; what it defines is found under both names.
    """
    spec = importlib.util.spec_from_file_location(_MAIN, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    module.__spec__ = None  # as of every script: else multiprocessing's own processes look for a module of that name
    sys.modules[_MAIN] = sys.modules["__main__"] = module
    spec.loader.exec_module(module)


class _Zygote:
    """The loop that waits for requests and for children that end."""

    def __init__(self, requests: socket.socket, app: Any, mode: Mode) -> None:
        self._requests = requests
        self._app = app
        self._mode = mode
        self._itself = os.pidfd_open(os.getpid())
        self._keepers: set[int] = set()
        self._entries: dict[str, Callable[..., None]] = {}
        # Helpers that imports started, such as multiprocessing's resource tracker, are none of a worker's leftovers.
        self._own = linux.children(os.getpid())
        self._randoms = [item for item in gc.get_objects() if _is_random(item)]
        self._wakeup = keeper.listen_to(signal.SIGCHLD)

    def serve(self) -> None:
        """Answers requests until the node closes its end."""
        poll = select.poll()
        poll.register(self._requests, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._wakeup.fileno():
                    self._wakeup.recv(4096)
                    self._bury()
                elif not self._take_request():
                    return

    def _take_request(self) -> bool:
        try:
            data, descriptors, _, _ = socket.recv_fds(self._requests, MESSAGE_BYTES, 3)
        except OSError:
            return False
        if not data:
            return False
        request = json.loads(data)
        answer: dict[str, Any]
        try:
            answer = {"keeper": self._fork(request, descriptors)}
        except Exception as error:  # noqa: BLE001 - told to the node, which raises it
            answer = {"error": _describe(error)}
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        _answer(self._requests, answer | {"id": request["id"]})
        return True

    def _fork(self, request: dict[str, Any], descriptors: list[int]) -> int:
        work = self._entry(request["entry"])
        gc.collect()
        gc.freeze()  # collections in the children then leave the shared pages of the imports alone
        sys.stdout.flush()
        sys.stderr.flush()
        if self._mode is Mode.SESSION:
            pid = keeper.spawn(partial(self._keep, work, request, descriptors, os.getpid()))
        else:
            pid = launcher.start(partial(self._keep, work, request, descriptors, None), self._mode, self._itself)
        self._keepers.add(pid)
        return pid

    def _entry(self, name: str) -> Callable[..., None]:
        """What a worker runs; before the first fork its module's `rehearse` does what all of them would do alike."""
        if name not in self._entries:
            module_name, _, attribute = name.partition(":")
            module = importlib.import_module(module_name)
            if hasattr(module, "rehearse"):
                module.rehearse()
            self._entries[name] = getattr(module, attribute)
        return self._entries[name]

    def _keep(
        self, work: Callable[..., None], request: dict[str, Any], descriptors: list[int], zygote: int | None
    ) -> NoReturn:
        self._requests.close()
        self._wakeup.close()
        if zygote is not None:
            os.close(self._itself)
        channel, control, output = descriptors
        keeper.keep(
            socket.socket(fileno=control),
            lambda: self._work(work, request, channel, output),
            parent=zygote,
            for_worker=(channel, output),
            until=request["until"],
            limits=limits.Limits(**request["limits"]),
        )

    def _work(self, work: Callable[..., None], request: dict[str, Any], channel: int, output: int) -> NoReturn:
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        for generator in self._randoms:
            generator.seed()
        linux.drop_capabilities()
        status = 1
        try:
            limits.apply(limits.Limits(**request["limits"]))
            work(socket.socket(fileno=channel), self._app)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:  # noqa: BLE001 - goes to the node's log; the exit status tells the rest
            print(f"the worker of space {request['space']!r} failed:", file=sys.stderr)  # noqa: T201 - its output is the log
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _bury(self) -> None:
        """Reaps keepers. What is left of a keeper that was killed has become ours by now: it is killed too.

        With namespaces nothing is ever left of one, and what comes here is a keeper whose launcher has ended.
        """
        while True:
            ended = keeper.reap()
            self._keepers.difference_update(ended)
            self._own.difference_update(ended)
            if self._mode is Mode.SESSION:
                for pid in linux.children(os.getpid()) - self._keepers - self._own:
                    os.kill(pid, signal.SIGKILL)
            if not ended:
                return


def _is_random(item: object) -> bool:
    kind = type(item)  # not isinstance: a lazy proxy would be resolved by the question
    return issubclass(kind, random.Random) and not issubclass(kind, random.SystemRandom)


def _files(error: BaseException | None = None) -> list[str]:
    """What was imported but for the standard library and what is installed, as far as a message carries it.

    Args:
        error: What an import failed with: the file that it failed in is none of a module's.
    """
    files = [getattr(module, "__file__", None) for module in tuple(sys.modules.values())]
    if error is not None:
        files += [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        files.append(getattr(error, "filename", None))  # of a SyntaxError, which no frame tells
    room, found = _FILES_BYTES, []
    for file in dict.fromkeys(files):
        if isinstance(file, str) and file.endswith(".py") and not file.startswith(_LIBRARY) and not _is_installed(file):
            room -= len(json.dumps(file)) + 2
            found += [file] if room >= 0 else []
    return found


def _is_installed(file: str) -> bool:
    return any(f"{os.sep}{name}{os.sep}" in file for name in ("site-packages", "dist-packages"))


def _answer(requests: socket.socket, answer: dict[str, Any]) -> None:
    try:
        requests.send(json.dumps(answer).encode())
    except OSError:
        _end(0)  # the node is gone


def _end(status: int) -> NoReturn:
    # Not sys.exit: threads and exit handlers that an import left behind would have a say in when this process ends.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _describe(error: BaseException) -> dict[str, str]:
    trace = "".join(traceback.format_exception(error))
    return {"type": type(error).__name__, "message": str(error)[:2000], "trace": trace[-_TRACE_CHARACTERS:]}


if __name__ == "__main__":
    # Through its importable name: importing the user's script replaces the module `__main__`.
    importlib.import_module("piecework.process.zygote").main()
