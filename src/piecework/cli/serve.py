"""`piecework serve`: one node, until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Literal

from piecework.cli.telling import clean
from piecework.errors import AppImportError
from piecework.importing import app_name, load_app
from piecework.store.sqlite import SqliteStore
from piecework.telemetry import logs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from piecework.app import App

# Ten times shorter than Python's own: the store's thread gets its turn sooner under a busy loop. A setting of the
# app's, applied when it opens, wins.
_SWITCH_INTERVAL_SECONDS = 0.0005
_FORCED = 1
_IMPATIENT_SECONDS = 0.5


def serve(
    app: str | None = None,
    *,
    store: str | None = None,
    database: str | None = None,
    mail: str | None = None,
    reload: bool = False,
    json_logs: bool = False,
    log_level: Literal["debug", "info", "warning", "error"] = "info",
) -> int:
    """Run one node of an app until Ctrl-C or SIGTERM; a second signal ends it at once.

    Args:
        app: MODULE:ATTRIBUTE of the app, or of a function that makes it; default PIECEWORK_APP.
        store: Where its runs and pieces are kept (sqlite:///FILE or postgresql://…); default the app's own, else
            PIECEWORK_STORE.
        database: The application's own data (sqlite:///FILE); default the app's own, else PIECEWORK_DATABASE.
        mail: Where mail goes (smtp://HOST:PORT?from=ADDRESS, console: or outbox:); default the app's own, else
            PIECEWORK_MAIL.
        reload: For development: when a file of the app's own code changes, pieces run the new one from then on. The
            node itself (workflows, jobs, what is declared) keeps the old one until it is started again.
        json_logs: One JSON object a log line.
        log_level: The least weight of log lines on standard error.

    Returns:
        0 after an orderly end.

    Raises:
        AppImportError: No app is named, or it cannot be imported.
        PieceworkError: The node cannot be opened; the message says why.
    """
    name = app or app_name()
    if name is None:
        raise AppImportError("no app is named: piecework serve MODULE:ATTRIBUTE, or set PIECEWORK_APP")
    logs.configure(level=log_level, json=json_logs)
    loaded = load_app(name)
    loaded.configure(store=store, database=database, mail=mail)
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
    asyncio.run(_run(loaded, reload=reload))
    return 0


async def _run(app: App, *, reload: bool) -> None:
    task = asyncio.current_task()
    assert task is not None
    stopping = _Stopping(task)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, partial(stopping.signalled, number))
    try:
        async with app:
            stopping.opened = True
            _say_ready(app)
            async with _reloading(app) if reload else nullcontext():
                await stopping.event.wait()
    except asyncio.CancelledError:
        if not stopping.event.is_set():
            raise


@asynccontextmanager
async def _reloading(app: App) -> AsyncIterator[None]:
    """Has the workers' code replaced whenever it changes."""
    task = asyncio.create_task(app.spaces.reload_on_change(), name="piecework-reload")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class _Stopping:
    """What signals do: the first ends the node in order, also while it is still opening; the second at once."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.event = asyncio.Event()
        self.opened = False
        self._first, self._at = 0, 0.0
        self._task = task

    def signalled(self, number: signal.Signals) -> None:
        if self.event.is_set():
            if number == self._first and time.monotonic() - self._at < _IMPATIENT_SECONDS:
                return  # the same wish, told to the process and to its group
            sys.stderr.write(f"piecework: a second {number.name}: ended at once, the next node continues what ran\n")
            sys.stderr.flush()
            os._exit(_FORCED)
        self._first, self._at = number, time.monotonic()
        self.event.set()
        if not self.opened:
            self._task.cancel()


def _say_ready(app: App) -> None:
    told = {
        "app": app.name,
        "node": app.node_id,
        "pid": os.getpid(),
        "store": app.store.url,
        "workflows": ",".join(app.runtime.list_workflows()) or "-",
        "integrations": ",".join(app.integrations) or "-",
    }
    if isinstance(app.store, SqliteStore):
        told["socket"] = app.store.lock.note.get("socket")
    sys.stdout.write(clean("ready " + " ".join(f"{key}={value}" for key, value in told.items())) + "\n")
    sys.stdout.flush()
