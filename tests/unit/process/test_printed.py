"""Promises about what user code prints."""

from __future__ import annotations

import io

from piecework.process import accounting
from piecework.process.accounting import Account
from piecework.process.printed import Printed


def printed(taken=True):
    """A stream that is stood for, what was handed over, and what stands for it."""
    stream, lines = io.StringIO(), []

    def on_line(line, account):
        lines.append((account.name, line))
        return taken

    return stream, lines, Printed(stream, on_line)


def test_whose_lines():
    """Whole lines are their run's, also when two print in turns; what is no run's goes to the stream."""
    stream, lines, out = printed()
    one, two = Account("one"), Account("two")
    for account, text in ((one, "a"), (two, "x\n"), (None, "free\n"), (one, "b\nc")):
        with accounting.charged(account):
            out.write(text)
    out.finish(one)
    assert lines == [("two", "x"), ("one", "ab"), ("one", "c")]
    assert stream.getvalue() == "free\n"


def test_no_end_of_lines():
    """After a thousand lines of a run the rest goes to the stream, as what cannot be handed over does."""
    for taken, kept in ((True, 1000), (False, 0)):
        stream, lines, out = printed(taken)
        with accounting.charged(Account("one")):
            out.writelines(f"{number}\n" for number in range(1005))
        assert (len(lines), stream.getvalue().count("\n")) == (1000, 1005 - kept)


def test_a_settled_run():
    """What is printed when its run has settled goes to the stream."""
    stream, lines, out = printed()
    account = Account("one")
    account.close(lambda trouble, error: None)
    with accounting.charged(account):
        out.write("late\n")
    assert (lines, stream.getvalue()) == ([], "late\n")
