"""`piecework demo`: the bundled newsroom at work, on documents of its own or on your feeds."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import signal
import sys
import tempfile
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import piecework
from piecework.errors import MissingExtraError, NotFoundError, ValidationError
from piecework.telemetry import logs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console

    from newsroom.desk import Desk
    from newsroom.opml import Subscription
    from newsroom.publisher import Publisher
    from newsroom.view import View

_MODULES = ("aiosmtpd", "aiosmtplib", "feedparser", "httpx2")
# A worker's environment is a minimal one; feeds on the internet may be reachable only through these.
_NETWORK = {"http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir"}
_OPML_LIMIT_BYTES = 8 * 1024 * 1024
_TICK_SECONDS = 0.25
_INTERRUPTED = 130


async def demo(
    *feeds: str,
    opml: Path | None = None,
    store: str | None = None,
    mail: str | None = None,
    to: str = "you@newsroom.example",
    keep: bool = False,
    seconds: float = 90,
    plain: bool = False,
) -> int:
    """Run the bundled newsroom: feeds are read, an editor approves, readers get mail.

    Without addresses it serves feeds of its own, with a mail server that shows what arrives. It ends by itself: 0 when
    every article went through, 1 when something is missing.

    Args:
        feeds: Addresses of feeds to read instead of the bundled ones.
        opml: Read the feeds of this OPML file, as a feed reader exports it; its folders become spaces.
        store: Keep the state in this SQLite file (sqlite:///path; the articles go to path-articles beside it) or this
            database (postgresql://…; the articles go to .piecework/demo-articles.db) and go on from there the next
            time.
        mail: Send through this mail server (smtp://host:port?from=you@example.org) instead of the built-in one.
        to: Who gets the mails about your own feeds.
        keep: Go on until Ctrl-C.
        seconds: Give up after so many seconds.
        plain: Print lines even on a terminal.

    Raises:
        MissingExtraError: The parts that only the demo needs are not installed.
        ValidationError: An address, the OPML file or the store cannot be used.
    """
    find_newsroom()
    own = _subscriptions(feeds, opml)
    with _place(store) as (store_url, database_url):
        show = await _open(own, to, store_url, database_url, mail, plain=plain)
        async with show.stack:
            return await _watch(show, keep=keep, limit_seconds=seconds)


class _Show(NamedTuple):
    stack: AsyncExitStack
    desk: Desk
    publisher: Publisher | None
    view: View
    console: Console


def find_newsroom() -> Path:
    """Makes the bundled package `newsroom` importable and tells where it is.

    Raises:
        MissingExtraError: The parts that only the demo needs are not installed.
        NotFoundError: This installation came without the examples.
    """
    if any(importlib.util.find_spec(name) is None for name in _MODULES):
        raise MissingExtraError.needs("piecework demo", "demo")
    package = Path(piecework.__file__).parent
    # Inside the package in a wheel, beside `src` in a checkout.
    for folder in (package / "examples", package.parents[1] / "examples"):
        if (folder / "newsroom" / "app.py").is_file():
            if str(folder) not in sys.path:
                sys.path.insert(0, str(folder))
            return folder / "newsroom"
    raise NotFoundError(f"no newsroom beside {package}: this installation came without the examples", kind="example")


def _subscriptions(feeds: Sequence[str], opml: Path | None) -> list[Subscription]:
    from newsroom.opml import NotOpml, from_urls, read_opml

    try:
        listed = read_opml(_read(opml)) if opml is not None else []
    except NotOpml as error:
        raise ValidationError(f"{opml}: {error}", path=str(opml)) from error
    try:
        return listed + from_urls(feeds)
    except NotOpml as error:
        raise ValidationError(str(error)) from error


def _read(file: Path) -> bytes:
    try:
        if file.stat().st_size > _OPML_LIMIT_BYTES:
            raise ValidationError(f"{file} is larger than {_OPML_LIMIT_BYTES} bytes: that is no list of feeds")
        return file.read_bytes()
    except OSError as error:
        raise ValidationError(f"{file} cannot be read: {error.strerror}", path=str(file)) from error


@contextmanager
def _place(store: str | None) -> Iterator[tuple[str, str]]:
    """Where the state and the articles live: the given file and one beside it, else a folder that goes at the end."""
    if store is None:
        with tempfile.TemporaryDirectory(prefix="piecework-demo-", ignore_cleanup_errors=True) as folder:
            yield f"sqlite:///{folder}/state.db", f"sqlite:///{folder}/articles.db"
        return
    if store.startswith(("postgresql://", "postgres://")):
        articles = Path(".piecework/demo-articles.db").absolute()
        articles.parent.mkdir(exist_ok=True)
        yield store, f"sqlite:///{articles}"
        return
    name = store.removeprefix("sqlite:///")
    if name == store or not name or "?" in name:
        raise ValidationError(
            f"{store!r} is not a place for the demo's state: give sqlite:///path/to/file.db or postgresql://…"
        )
    path = Path(name).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValidationError(f"{path.parent} cannot be made: {error.strerror}", path=str(path)) from error
    yield f"sqlite:///{path}", f"sqlite:///{path.with_name(f'{path.stem}-articles{path.suffix}')}"


async def _open(own: list[Subscription], to: str, store: str, database: str, mail: str | None, *, plain: bool) -> _Show:
    from rich.console import Console

    from newsroom.app import app, set_up
    from newsroom.desk import Desk
    from newsroom.publisher import Publisher
    from newsroom.sink import Sink
    from newsroom.view import LiveView, PlainView

    logs.configure(level="error")
    console = Console(highlight=False)
    async with AsyncExitStack() as stack:
        publisher = None if own else stack.enter_context(Publisher())
        sink = await stack.enter_async_context(Sink()) if mail is None else None
        env = {name: value for name, value in os.environ.items() if name.lower() in _NETWORK} if own else {}
        app.configure(store=store, database=database, mail=sink.url if sink is not None else mail, env=env)
        await stack.enter_async_context(app)
        await app.run_in_new_workspace(set_up)
        subscriptions = publisher.subscriptions() if publisher is not None else own
        desk = Desk(app, subscriptions, sink=sink, pace_seconds=0.1 if own else 0.5)
        for feed in subscriptions:
            config: dict[str, Any] = {"url": feed.url, "to": to if own else f"readers@{feed.space}.example"}
            if own:
                config["newest"] = 5
            integration = "feed" if own else "wire"
            await app.pieces.register(space=feed.space, piece_id=feed.piece_id, integration=integration, config=config)
        lively = console.is_terminal and not console.is_dumb_terminal and not plain
        view: View = LiveView(console) if lively else PlainView(console)
        return _Show(stack.pop_all(), desk, publisher, view, console)


async def _watch(show: _Show, *, keep: bool, limit_seconds: float) -> int:
    from newsroom.view import say

    with _stop_signals() as stop, show.view:
        pending = await _until_done(show, stop, limit_seconds=limit_seconds)
        if keep and not stop.is_set():
            show.view.show(await show.desk.look())
            where = f" at {show.publisher.url}" if show.publisher else ""
            say(show.console, f"going on{where} until Ctrl-C")
            await _until_done(show, stop, limit_seconds=None)
    lost = show.desk.lost()
    for line in show.desk.summary(intended=show.publisher.broken() if show.publisher else ()):
        say(show.console, line)
    for line in pending + lost:
        say(show.console, f"missing: {line}")
    if stop.is_set() and not keep:
        return _INTERRUPTED
    return 1 if pending or lost else 0


async def _until_done(show: _Show, stop: asyncio.Event, *, limit_seconds: float | None) -> list[str]:
    """Looks, shows and approves until all is done, the time is over or a signal came; without a limit, until that."""
    expected = show.publisher.article_ids() if show.publisher else set()
    loop = asyncio.get_running_loop()
    ends_at = None if limit_seconds is None else loop.time() + limit_seconds
    while True:
        show.view.show(await show.desk.look())
        pending = show.desk.pending(expected)
        if show.publisher and not show.publisher.caught_up():
            pending.append("feeds that were not read again after their news")
        over = ends_at is not None and (not pending or loop.time() >= ends_at)
        if over or stop.is_set():
            return pending
        await show.desk.approve()
        try:
            await asyncio.wait_for(stop.wait(), _TICK_SECONDS)
        except TimeoutError:
            continue


@contextmanager
def _stop_signals() -> Iterator[asyncio.Event]:
    """An event that Ctrl-C and SIGTERM set, so that both end in a summary and an orderly close."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    undo: list[Callable[[], object]] = []
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
            undo.append(partial(loop.remove_signal_handler, number))
    except (NotImplementedError, RuntimeError, ValueError):  # not the main thread: somebody else minds the signals
        pass
    try:
        yield stop
    finally:
        for step in undo:
            step()
