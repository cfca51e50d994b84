"""The newsroom at a glance: a live picture where there is a terminal, a line for each thing that happens elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import RenderableType

_COLOURS = {
    "success": "green",
    "skipped": "dim",
    "retry_after": "yellow",
    "failed": "red",
    "queued": "dim",
    "running": "cyan",
    "paused": "yellow",
    "completed": "green",
    "aborted": "red",
}
_ROWS = 8


@dataclass(frozen=True, slots=True)
class FeedLine:
    """What is shown of one piece.

    Attributes:
        piece_id: Its name.
        outcome: How its last run ended: success, skipped, retry_after, failed, or empty.
        detail: A few words about that.
        next_in_seconds: When it runs next; None when it does not.
    """

    piece_id: str
    outcome: str = ""
    detail: str = ""
    next_in_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class RunLine:
    """What is shown of one editorial run: its article's title and space, and its status."""

    title: str
    space: str
    status: str


@dataclass(frozen=True, slots=True)
class Picture:
    """The newsroom at one moment.

    Attributes:
        spaces: The pieces of each space.
        runs: The latest editorial runs, newest first.
        mails: Subjects of the mails that arrived, oldest first.
        articles: How many articles are known.
        mailed: How many of them are done with.
        happened: What has happened since the picture before, a line each.
        elapsed_seconds: Since the start.
    """

    spaces: dict[str, tuple[FeedLine, ...]]
    runs: tuple[RunLine, ...] = ()
    mails: tuple[str, ...] = ()
    articles: int = 0
    mailed: int = 0
    happened: tuple[str, ...] = ()
    elapsed_seconds: float = 0


class View(Protocol):
    """Where pictures go; a context manager."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, picture: Picture) -> None:
        """Shows the newest picture."""
        ...


class PlainView:
    """Prints what happened, a line each: for files, pipes and people who read with their ears."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to put back."""

    def show(self, picture: Picture) -> None:
        """Prints the lines of a picture that are new."""
        for line in picture.happened:
            say(self._console, line)


class LiveView:
    """Keeps one picture on the terminal and draws it anew in place."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, picture: Picture) -> None:
        """Draws a picture over the one before."""
        self._live.update(render(picture), refresh=True)


def say(console: Console, line: str) -> None:
    """Prints one line as it is: nothing in it is taken for markup, wrapped or coloured."""
    console.print(Text(printable(line)), soft_wrap=True)


def printable(text: str) -> str:
    """Makes foreign text fit for a terminal: whatever could move its cursor becomes a blank."""
    return "".join(c if c.isprintable() else " " for c in text)


def render(picture: Picture) -> RenderableType:
    """Draws a picture: spaces above, runs and mails in the middle, the progress below."""
    middle = Table.grid(expand=True, padding=(0, 1, 0, 0))
    middle.add_column(ratio=3)
    middle.add_column(ratio=2)
    middle.add_row(_runs(picture.runs), _mails(picture.mails))
    return Group(_spaces(picture.spaces), middle, _progress(picture))


def _spaces(spaces: dict[str, tuple[FeedLine, ...]]) -> Table:
    grid = Table.grid(expand=True)
    panels: list[RenderableType] = [_space(name, feeds) for name, feeds in spaces.items()]
    for _ in panels[:2]:
        grid.add_column(ratio=1)
    for first in range(0, len(panels), 2):
        grid.add_row(*panels[first : first + 2])
    return grid


def _space(name: str, feeds: tuple[FeedLine, ...]) -> Panel:
    table = Table.grid(expand=True, padding=(0, 1, 0, 0))
    table.add_column(ratio=2, no_wrap=True)
    table.add_column(ratio=4, no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for feed in feeds[:_ROWS]:
        due = "" if feed.next_in_seconds is None else f"{max(feed.next_in_seconds, 0):.0f} s"
        table.add_row(
            _text(feed.piece_id), _text(feed.detail or "…", _COLOURS.get(feed.outcome, "dim")), _text(due, "dim")
        )
    more = len(feeds) - _ROWS
    return Panel(Group(table, _text(f"and {more} more", "dim")) if more > 0 else table, title=_text(name, "bold"))


def _runs(runs: tuple[RunLine, ...]) -> Panel:
    table = Table.grid(expand=True, padding=(0, 1, 0, 0))
    table.add_column(width=9, no_wrap=True)
    table.add_column(width=8, no_wrap=True)
    table.add_column(ratio=1, no_wrap=True)
    for run in runs[:_ROWS]:
        table.add_row(_text(run.status, _COLOURS.get(run.status, "")), _text(run.space, "dim"), _text(run.title))
    return Panel(table, title="editorial runs")


def _mails(mails: tuple[str, ...]) -> Panel:
    lines = [_text(subject) for subject in mails[-_ROWS:]]
    return Panel(Group(*lines), title=f"mails arrived: {len(mails)}")


def _progress(picture: Picture) -> Table:
    row = Table.grid(expand=True, padding=(0, 1, 0, 0))
    row.add_column(ratio=1)
    row.add_column(justify="right", no_wrap=True)
    row.add_row(
        ProgressBar(total=max(picture.articles, 1), completed=picture.mailed),
        _text(f"{picture.mailed} of {picture.articles} articles · {picture.elapsed_seconds:.0f} s"),
    )
    return row


def _text(content: str, style: str = "") -> Text:
    return Text(printable(content), style=style, overflow="ellipsis", no_wrap=True)
