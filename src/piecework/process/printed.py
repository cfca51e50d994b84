"""What user code prints, by the run that prints it."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING

from piecework.process.accounting import Account, current

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TextIO

_LINES_LIMIT = 1000
_LINE_LIMIT = 16 * 1024


class Printed(io.TextIOBase):
    """Stands for a standard stream: whole lines of a run are handed over, all else goes to the stream as before.

    A run that prints without end prints to the stream after its first thousand lines, which slows it down instead of
    filling memory and its timeline. A line without an end is kept until `finish`.

    Args:
        stream: What it stands for.
        on_line: Takes each line with the account that printed it, from any thread; False when it cannot.
    """

    def __init__(self, stream: TextIO, on_line: Callable[[str, Account], bool]) -> None:
        self._stream = stream
        self._on_line = on_line
        self._begun: dict[Account, tuple[int, str]] = {}
        self._lock = threading.RLock()

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a property here, an attribute there
        """That of the stream."""
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]  # a property here, an attribute there
        """That of the stream."""
        return self._stream.errors

    @property
    def buffer(self) -> object:
        """That of the stream: bytes that are written there belong to no run."""
        return self._stream.buffer

    def writable(self) -> bool:
        """True."""
        return True

    def fileno(self) -> int:
        """That of the stream."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """False: a worker's streams are pipes."""
        return False

    def flush(self) -> None:
        """Flushes the stream; a line of a run waits for its end."""
        self._stream.flush()

    def write(self, text: str) -> int:
        """Takes text in; answers how many characters."""
        account = current()
        if account is None or account.closed:
            return self._stream.write(text)
        with self._lock:
            count, begun = self._begun.get(account, (0, ""))
            *lines, rest = (begun + text).split("\n")
            if len(rest) > _LINE_LIMIT:
                lines, rest = [*lines, rest], ""
            self._begun[account] = count + len(lines), rest
            for number, line in enumerate(lines, start=count):
                self._hand_over(line, account, number)
        return len(text)

    def writelines(self, lines: Iterable[str], /) -> None:  # type: ignore[override]  # text here
        """Writes each of them."""
        for line in lines:
            self.write(line)

    def finish(self, account: Account) -> None:
        """Hands over what a run has printed without an end of line, and forgets the run."""
        with self._lock:
            count, rest = self._begun.pop(account, (0, ""))
            if rest:
                self._hand_over(rest, account, count)

    def _hand_over(self, line: str, account: Account, number: int) -> None:
        if number >= _LINES_LIMIT or not self._on_line(line, account):
            self._stream.write(f"{line}\n")
