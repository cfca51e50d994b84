"""A node with one piece, for tests that kill it: `python killed_piece.py FOLDER PLACE`.

The first time that the place is reached the node is gone; "in the update" it is the update that kills it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

from piecework import App, Settings, Success
from piecework.run.node import Node

app = App("feeds", settings=Settings(space_grace_seconds=0.2))


@app.piece("feed", every_seconds=3600)
async def feed(piece):
    """Counts its updates; the first of them takes the node away and would go on for ever."""
    folder = Path(piece.config["folder"])
    piece.state["count"] = piece.state.get("count", 0) + 1
    with (folder / "updates").open("a") as file:
        file.write(f"{piece.attempt} {piece.workspace.key}\n")
    await piece.publish("looked", {"count": piece.state["count"]})
    if piece.config["place"] == "in the update" and not (folder / "killed").exists():
        (folder / "killed").touch()
        (folder / "node").write_text("die")
        await asyncio.Event().wait()
    return Success(dict(piece.state))


def reached(here: str, folder: Path, place: str) -> None:
    """Ends this process if it is to end here."""
    if here == place and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def watch_commits(folder: Path, place: str) -> None:
    """Makes the moments before and after the commit that ends an update places to be killed at."""
    commit = Node.commit

    async def watched(self, verb, item, decide):
        reached(f"before commit {type(item).__name__}", folder, place)
        answer = await commit(self, verb, item, decide)
        reached(f"after commit {type(item).__name__}", folder, place)
        return answer

    Node.commit = watched


def obey(pipe: Path) -> None:
    """Ends this process when the update says so: it cannot do that itself, it sees its own processes only."""
    with contextlib.suppress(FileExistsError):
        os.mkfifo(pipe)
    pipe.read_text()
    os.kill(os.getpid(), signal.SIGKILL)


async def main(folder: Path, place: str) -> None:
    """Has the piece updated once."""
    watch_commits(folder, place)
    threading.Thread(target=obey, args=(folder / "node",), daemon=True).start()
    settings = Settings(lease_seconds=1, heartbeat_seconds=0.2, space_writable_paths=(str(folder),))
    app.configure(store=os.environ["STORE_OF_THE_TEST"], settings=settings)
    async with app:
        if not await app.pieces.list():
            config = {"folder": str(folder), "place": place}
            await app.pieces.register(space="acme", piece_id="p", integration="feed", config=config)
            reached("after register", folder, place)
        update = (await app.pieces.runs("acme", "p"))[-1]
        result = await app.runtime.wait(update.run_id)
        piece = await app.pieces.get("acme", "p")
        runs = await app.pieces.runs("acme", "p")
        told = {"ok": result.ok, "result": (await app.runtime.get(update.run_id)).result, "status": piece.status}
        told |= {"failures": piece.consecutive_failures, "runs": [run.status for run in runs]}
        sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
