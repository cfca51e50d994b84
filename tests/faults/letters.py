"""A node for tests that kill it: one run of three stages, and a place where the process kills itself with SIGKILL.

    python letters.py FOLDER PLACE [MAIL-URL]

The first time that the place is reached (always, when it ends with "!") the process is gone. Each step leaves a line
in FOLDER/steps. What the run came to is the last line of standard output, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from piecework import App, Settings, Stage, WaitFor, Workflow
from piecework.run.node import Node

folder, place, *rest = Path(sys.argv[1]), *sys.argv[2:]
steps, marker = folder / "steps", folder / "killed"
app = App(
    "letters",
    store=os.environ["STORE_OF_THE_TEST"],
    mail=rest[0] if rest else "outbox:",
    settings=Settings(crash_limit=3, mail_retry_seconds=(0.01,), lease_seconds=1, heartbeat_seconds=0.2),
)


def reached(here: str) -> None:
    """Ends this process if it is to end here."""
    if here == place.removesuffix("!") and (place.endswith("!") or not marker.exists()):
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def step(name: str):
    """A step that leaves a line and may be killed before, within and after its work."""

    async def work(ctx):
        reached(f"before {name}")
        with steps.open("a") as file:
            file.write(f"{name} {ctx.idempotency_key}\n")
        reached(f"in {name}")
        if name == "three" and rest:
            mail = await ctx.workspace.send_mail(to="ada@example.org", subject="Letter", text="Dear Ada")
            return {"three": True, "mail": mail}
        return {name: True}

    work.__name__ = name
    return work


app.workflow(
    Workflow(
        "letter",
        on="wanted",
        stages=[
            Stage("one", steps=[step("one")]),
            Stage("two", steps=[step("two")], wait=WaitFor("approved", id=7)),
            Stage("three", steps=[step("three")]),
        ],
    )
)


def watch_commits() -> None:
    """Makes the moments before and after each commit of the run places to be killed at."""
    commit, done = Node.commit, 0

    async def watched(self, verb, item, decide):
        nonlocal done
        name = f"{type(item).__name__} {getattr(getattr(item, 'then', None), 'stage', '')}".strip()
        reached(f"before commit {name}")
        answer = await commit(self, verb, item, decide)
        reached(f"after commit {name}")
        return answer

    Node.commit = watched


async def main() -> None:
    """Has one letter written, whatever came of it before."""
    async with app:
        sys.stdout.write(f"{os.getpid()}\n")
        sys.stdout.flush()
        run_id = (await app.publish("wanted", {"n": 1}, id="evt-1")).dispatched[0].run_id
        reached("after publish")
        await app.runtime.wait(run_id, until="paused")
        reached("while paused")
        await app.publish("approved", {"id": 7, "by": "Bob"}, id="evt-2")
        reached("after approval")
        result = await app.runtime.wait(run_id)
        told = {"run_id": run_id, "ok": result.ok, "error": None if result.ok else result.error.code}
        told["state"] = await app.runtime.state(run_id)
        entries = await app.runtime.timeline(run_id)
        told["timeline"] = [entry.type for entry in entries]
        told["seqs"] = [entry.seq for entry in entries]
        told["stages"] = [
            sorted({"one", "two", "three"} & (await app.runtime.seek(run_id, entry.seq)).keys())
            for entry in entries
            if entry.type == "stage:completed"
        ]
        told["runs"] = len(await app.runtime.list_all_runs(kind="workflow"))
        if rest and result.ok:
            mail = await app.runtime.wait(result.value.state["mail"])
            told["mail"] = "sent" if mail.ok else mail.error.code
        sys.stdout.write(json.dumps(told) + "\n")


watch_commits()
asyncio.run(main())
