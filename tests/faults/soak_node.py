"""A node with pieces of several spaces on short intervals, for tests that kill at random: `soak_node.py FOLDER`.

Each update tells of itself over a pipe in the folder, and holds a lock of its piece while it runs, which the kernel
takes away with its process. It ends in order when its standard input does.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import sys
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

from piecework import App, RetryAfter, Settings, Skipped, Success

SPACES = ("red", "green", "blue")
WANTED = {
    "lease_seconds": 1,
    "heartbeat_seconds": 0.2,
    "space_grace_seconds": 0.2,
    "piece_history_limit": 100_000,
    "skipped_history_limit": 100_000,
    "crash_limit": 1_000_000,
    "crash_loop_limit": 1_000_000,
}
SETTINGS = Settings(**{field.name: WANTED[field.name] for field in fields(Settings) if field.name in WANTED})

app = App("soak")


def tell(piece, word):
    """One line over the pipe; it is short enough to be whole."""
    pipe = os.open(piece.config["pipe"], os.O_WRONLY)
    try:
        os.write(pipe, f"{word} {piece.space}/{piece.piece_id} {piece.workspace.key} {piece.attempt}\n".encode())
    finally:
        os.close(pipe)


@contextmanager
def alone(piece):
    """Holds the lock of this piece; tells if somebody else has it."""
    with Path(piece.config["pipe"]).with_name(f"{piece.space}-{piece.piece_id}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(piece, "overlap")
            raise
        tell(piece, "begin")
        yield
        tell(piece, "end")


@app.piece("steady", every_seconds=0.02)
async def steady(piece):
    """Counts its good updates."""
    with alone(piece):
        piece.state["count"] = piece.state.get("count", 0) + 1
        await asyncio.sleep(random.random() * 0.02)
        return Success({"count": piece.state["count"]})


@app.piece("moody", every_seconds=0.02)
async def moody(piece):
    """Counts its good updates; some fail, some are put off, some have nothing to do."""
    with alone(piece):
        mood = random.random()
        if mood < 0.2:
            raise LookupError("the feed is gone")
        if mood < 0.3:
            return Skipped("not modified")
        if mood < 0.4:
            return RetryAfter(seconds=1)
        piece.state["count"] = piece.state.get("count", 0) + 1
        return Success({"count": piece.state["count"]})


async def main(folder: Path) -> None:
    """Serves until told to end."""
    app.configure(store=os.environ["STORE_OF_THE_TEST"], database=f"sqlite:///{folder}/app.db", settings=SETTINGS)
    async with app:
        there = {(record.space, record.piece_id) for record in await app.pieces.list()}
        for space in SPACES:
            for name in {"steady", "moody"} - {known for where, known in there if where == space}:
                await app.pieces.register(
                    space=space, piece_id=name, integration=name, config={"pipe": str(folder / "pipe")}
                )
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
