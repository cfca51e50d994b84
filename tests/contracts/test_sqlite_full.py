"""A full disk and a failing one: nothing acknowledged is lost, nothing lost was acknowledged, and work goes on."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys

import pytest

from piecework.errors import StoreFullError
from piecework.store.records import Run
from piecework.store.sqlite import SqliteStore
from piecework.testing.invariants import check_invariants
from piecework.testing.verbs import Verbs, job

# Writes jobs until the disk refuses, reads meanwhile, makes room, writes what was refused again, opens the file anew.
FILL = """
import asyncio, os, resource, sys
from pathlib import Path
from piecework.errors import StoreError
from piecework.store.records import Run
from piecework.store.sqlite import SqliteStore
from piecework.testing.invariants import check_invariants
from piecework.testing.verbs import Verbs, job

path = Path(sys.argv[1])
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
ballast = path.parent / "ballast"

def fill():
    if sys.argv[2] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(f"{path}-wal").st_size + 100_000, hard))
        return
    room = os.statvfs(path.parent)
    with ballast.open("wb", buffering=0) as file:
        file.write(bytes(room.f_bavail * room.f_frsize - 300_000))

def make_room():
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    ballast.unlink(missing_ok=True)

async def rows(store):
    names = [f"job-{number}" for number in range(400)]
    return {run.run_id for run in await store.read("runs_by_id", {"run_ids": names}, Run)}

async def main():
    store = SqliteStore(path)
    await store.open()
    verbs = Verbs(store)
    fill()
    acknowledged, refused = set(), {}
    for batch in range(20):
        some = [job(f"job-{batch * 20 + one}", args=b'"' + b"x" * 700 * one + b'"') for one in range(20)]
        answers = await asyncio.gather(*map(verbs.enqueue, some), return_exceptions=True)
        for item, answer in zip(some, answers):
            if isinstance(answer, StoreError):
                refused[item.run.run_id] = answer
            else:
                acknowledged.add(item.run.run_id)
        assert await rows(store) == acknowledged, "read while the disk refuses"
    print(*sorted({type(error).__name__ for error in refused.values()}), flush=True)
    print(next(iter(refused.values())), flush=True)
    make_room()
    again = [await verbs.enqueue(job(name)) for name in refused]
    assert not any(answer.duplicate for answer in again), "refused, and written all the same"
    assert await rows(store) == acknowledged | set(refused)
    await store.close()
    store = SqliteStore(path)
    await store.open()
    assert await rows(store) == acknowledged | set(refused)
    await check_invariants(store)
    await store.close()
    print(f"all {len(acknowledged) + len(refused)} are there", flush=True)

asyncio.run(main())
"""

ON_A_SMALL_DISK = """
import os, sys
folder, program = sys.argv[1:]
mount = 'mount -t tmpfs -o size=24m tmpfs "$1" && exec "$2" -c "$3" "$1/state.db" disk'
os.execvp("unshare", ["unshare", "--mount", "sh", "-c", mount, "sh", folder, sys.executable, program])
"""


def may_mount():
    """Whether this process may make a small disk that only its children see."""
    unshare = shutil.which("unshare")
    tried = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return unshare is not None and subprocess.run(tried, capture_output=True, check=False).returncode == 0


class Small(SqliteStore):
    """A store that may grow by so many pages."""

    def _connect(self):
        connection = super()._connect()
        self.connections.append(connection)
        return connection

    def __init__(self, path):
        super().__init__(path)
        self.connections = []

    def room_for(self, pages):
        """Lets the file grow by so many pages from here."""
        writer = self.connections[0]
        (used,) = writer.execute("PRAGMA page_count").fetchone()
        writer.execute(f"PRAGMA max_page_count = {used + pages}").fetchall()


@pytest.fixture
async def store(tmp_path):
    store = Small(tmp_path / "state.db")
    await store.open()
    yield store
    await check_invariants(store)
    await store.close()


def sized(number, size):
    return job(f"job-{number}", args=b'"' + b"x" * size + b'"')


async def stored(store, numbers):
    rows = await store.read("runs_by_id", {"run_ids": [f"job-{number}" for number in numbers]}, Run)
    return {row.run_id for row in rows}


async def test_only_what_finds_no_room_is_refused(store):
    """Of a group that does not fit, what fits is written and acknowledged; the rest is told that the disk is full."""
    verbs = Verbs(store)
    await verbs.enqueue(sized(99, 10))
    store.room_for(6)
    sizes = [10, 90_000, 20, 80_000, 30]
    answers = await asyncio.gather(
        *(verbs.enqueue(sized(number, size)) for number, size in enumerate(sizes)), return_exceptions=True
    )
    assert [type(answer).__name__ for answer in answers] == [
        "StoreFullError" if size > 1000 else "Enqueued" for size in sizes
    ]
    assert await stored(store, range(5)) == {"job-0", "job-2", "job-4"}


@pytest.mark.covers("N68")
async def test_the_store_goes_on_when_there_is_room(store):
    """What was refused can be written as soon as there is room, on the same open store."""
    verbs = Verbs(store)
    store.room_for(2)
    with pytest.raises(StoreFullError, match=r"state\.db is full: make room"):
        await verbs.enqueue(sized(1, 50_000))
    store.room_for(1000)
    assert not (await verbs.enqueue(sized(1, 50_000))).duplicate
    assert await stored(store, [1]) == {"job-1"}


async def test_a_full_store_still_answers_queries(store):
    """While nothing can be written everything can be read, lists too."""
    verbs = Verbs(store)
    await asyncio.gather(*(verbs.enqueue(sized(number, 10)) for number in range(30)))
    store.room_for(0)
    answers = await asyncio.gather(
        *(verbs.enqueue(sized(number, 9000)) for number in range(30, 40)), return_exceptions=True
    )
    assert {type(answer) for answer in answers} == {StoreFullError}
    assert len(await stored(store, range(40))) == 30


@pytest.mark.skipif(not may_mount(), reason="needs the right to mount a small disk")
def test_a_disk_that_is_really_full(tmp_path, process):
    """On a real disk without room: STORE_FULL, all that was acknowledged stays, and room lets the store go on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    child = process(ON_A_SMALL_DISK, disk, FILL)
    assert child.line() == "StoreFullError"
    assert "is full: make room" in child.line()
    assert child.line() == "all 400 are there"
    assert list(disk.iterdir()) == []


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS does not refuse with a limit on a file's size")
def test_a_disk_that_fails(tmp_path, process):
    """A write that the system refuses is told as the store's failure, and costs nothing that was acknowledged."""
    child = process(FILL, tmp_path / "state.db", "limit")
    assert child.line() == "StoreError"
    assert "look at its disk" in child.line()
    assert child.line() == "all 400 are there"
