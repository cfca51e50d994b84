"""The programs of examples/workspaces, each run as a user runs it, on a database of either kind."""

from __future__ import annotations

import asyncio
import inspect
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from piecework import Workspace

EXAMPLES = Path(__file__).parents[2] / "examples" / "workspaces"
CLEAN = "data" in inspect.signature(Workspace.workspace).parameters


async def told(name, url, folder):
    """What a program prints, line by line, with the database at that address."""
    command = [sys.executable, "-W", "error", str(next(EXAMPLES.glob(f"{name}*.py"))), url]
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdout=PIPE, stderr=PIPE)
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, err.decode()) == (0, "")
    return out.decode().splitlines()


@pytest.mark.covers("W27", "W28", "W29", "W30", "W32")
async def test_example_1(database_url, tmp_path):
    """A handler answers before anybody is notified; then each admin but the actor is told of the comment, once."""
    assert await told("01", database_url, tmp_path) == [
        *2 * ("the handler answers; everybody is notified: False", "{'redirect': '_top'}"),
        "to bob@example.org: 'New comment: Well said!'",
        "to cleo@example.org: 'New comment: Well said!'",
    ]


@pytest.mark.covers("W34", "W35", "W36")
async def test_example_2(database_url, tmp_path):
    """Who signs in is redirected at once, and the welcome mail follows."""
    assert await told("02", database_url, tmp_path) == [
        "{'redirect': '/dashboard'}",
        "to ada@example.org: 'Welcome to our platform!'",
    ]


@pytest.mark.covers("W38", "W71")
async def test_example_3(database_url, tmp_path):
    """The lock here and the one in another workspace are both had, never by two at once."""
    first, second, end = await told("03", database_url, tmp_path)
    assert {first, second} == {f"{one} workspace holds the lock, with it 0 others" for one in ("this", "the other")}
    assert end == "both are done"


@pytest.mark.covers("W43", "W44", "W45", "W46", "W47", "W48")
async def test_example_4(database_url, tmp_path):
    """250 of 251 readers, on three pages, each get one notification of two lines, also who subscribes twice."""
    text = repr('New post: "Tea"\nRead at: https://blog.example.org/tea')
    assert await told("04", database_url, tmp_path) == [
        "pages: 3",
        "pages of a post that is not there: None",
        "250",
        "mails; the first and the last:",
        f"to reader001@example.org: {text}",
        f"to reader250@example.org: {text}",
    ]


@pytest.mark.covers("W50", "W51", "W99")
async def test_example_5(database_url, tmp_path):
    """Users are worked on at the same time, each by two commands in their order, and the results keep theirs."""
    lines = await told("05", database_url, tmp_path)
    assert lines[:6] == [f"{{'user_id': {number}, 'processed': True}}" for number in (1, 2, 3, 4, 5, 1)]
    assert lines[6:] == ["Ada, reports: 2", *(f"{name}, reports: 1" for name in ("Bob", "Cleo", "Dan", "Eve"))]


@pytest.mark.skipif(not CLEAN, reason="workspaces have no data modes")
async def test_example_6(database_url, tmp_path):
    """An isolated workspace has a database of its own without rows, and what it inserts is not seen outside."""
    assert await told("06", database_url, tmp_path) == ["in the isolated workspace: 0", "in the main workspace: 1"]


async def test_an_example_needs_nothing():
    """Without an address an example makes its own database, and leaves nothing behind."""
    with TemporaryDirectory() as folder:  # short, as the path of a socket has to be
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", str(EXAMPLES / "03_lock_with_isolation.py")),
            stdout=PIPE,
            env={"TMPDIR": folder, "PYTHONPATH": ":".join(sys.path)},
        )
        out, _ = await process.communicate()
        assert out.endswith(b"both are done\n")
        assert list(Path(folder).glob("piecework-example-*")) == []
