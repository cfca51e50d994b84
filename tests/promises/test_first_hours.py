"""What somebody meets in the first hours: where an error was, what was dropped, and how misuse is told."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from piecework import App, Event, Stage, Transient, WaitFor, Workflow
from piecework.errors import StoppedError, StoreError, ValidationError

if TYPE_CHECKING:
    from pathlib import Path

GUARDLESS = """
import asyncio
from piecework import App
app = App("guardless", store="sqlite:///state.db")
@app.piece("tick")
async def tick(piece): ...
async def main():
    async with app:
        pass
asyncio.run(main())
"""


def dig(_ctx):
    return {}["deep"]


def careless(_view):
    return WaitFor("paid", id={}["to"])


@pytest.mark.covers("N48")
@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (Stage("one", steps=[dig]), ["KeyError", "deep", "test_first_hours.py:"]),
        (Stage("one", wait=careless), ["wait function of stage 'one'", "KeyError", "'to'", "test_first_hours.py:"]),
    ],
    ids=["a step", "a wait function"],
)
async def test_a_failed_run_says_where(make_app, stage, words):
    """A failed run's error names the exception, the file and the line, and keeps the traceback."""
    async with make_app(Workflow("w", on="go", stages=[stage])) as app:
        result = await app.runtime.invoke("w", "default", Event("go"))
        assert all(word in result.error.message for word in words)
        info = await app.runtime.get(result.metadata.run_id)
    assert "Traceback" in info.error["trace"]
    assert "test_first_hours.py" in info.error["trace"]


@pytest.mark.covers("N49")
async def test_what_is_dropped_is_told(make_app, caplog):
    """An event that a workflow has no room for is told in its receipt and as a warning in the log."""
    workflow = Workflow("w", on="go", stages=[Stage("one", wait=WaitFor("never"))])
    async with make_app(workflow, mode=Transient(concurrency=1, capacity=0, hold_while_paused=True)) as app:
        await app.publish("go")
        receipt = await app.publish("go")
    assert [result.outcome for result in receipt.dispatched] == ["dropped"]
    lines = [record.msg for record in caplog.records if record.levelname == "WARNING"]
    assert [(line.event, line.fields["workflow_id"], line.fields["reason"]) for line in lines] == [
        ("event.dropped", "w", "capacity")
    ]


@pytest.mark.covers("N50")
async def test_a_patch_cannot_reach_the_runtimes_own_keys(make_app):
    """A step that returns keys with two underscores fails its run; the runtime's own data stay."""

    async def greedy(_ctx):
        return {"__run_meta__": 5}

    async with make_app(Workflow("w", on="go", stages=[Stage("one", steps=[greedy])])) as app:
        result = await app.runtime.invoke("w", "default", Event("go"))
    assert result.error.code == "VALIDATION_ERROR"
    assert "__run_meta__" in result.error.message


@pytest.mark.covers("N51")
def test_declarations_that_would_register_nothing():
    """A piece without a name, or whose function takes no argument, and a workflow that is none are refused at once."""
    app = App("misuse")
    with pytest.raises(ValidationError, match=r"@app\.piece\('feed'"):
        app.piece(lambda piece: None)
    with pytest.raises(ValidationError, match="has to take one argument"):
        app.piece("tick")(lambda: None)
    with pytest.raises(ValidationError, match="needs a Workflow"):
        app.workflow("letters")


@pytest.mark.covers("N52")
async def test_a_mail_server_without_a_sender_is_refused_when_the_app_opens(make_app):
    """A mail URL that names no sender is refused at once, not when the first mail is lost."""
    with pytest.raises(ValidationError, match=r"\?from="):
        async with make_app(mail="smtp://127.0.0.1:2525"):
            pass


@pytest.mark.covers("N53")
def test_a_script_without_a_guard_is_told_so(tmp_path: Path):
    """A script with pieces that runs its app on import ends with one line that says what to put where."""
    (tmp_path / "guardless.py").write_text(GUARDLESS, "utf-8")
    ended = subprocess.run(
        [sys.executable, "guardless.py"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30
    )
    assert ended.returncode == 1
    assert "under if __name__ == '__main__':" in ended.stderr.splitlines()[-1]


@pytest.mark.covers("N54")
async def test_the_bodys_error_wins_over_a_store_that_cannot_close(make_app, monkeypatch):
    """When the store fails while the app closes, the error of the body is still the one that comes out."""
    app = make_app()
    with pytest.raises(RuntimeError, match="the body's own"):  # noqa: PT012 - the whole block is what fails
        async with app:
            monkeypatch.setattr(app.node, "_strays", True)

            async def broken(*_args, **_kwargs):
                raise StoreError("the disk is gone")

            monkeypatch.setattr(app.store, "read", broken)
            raise RuntimeError("the body's own")


@pytest.mark.covers("N55")
async def test_register_after_stop(make_app):
    """A runtime that has stopped takes no workflow more."""
    async with make_app() as app:
        await app.runtime.stop()
        await app.runtime.stop()
        with pytest.raises(StoppedError):
            await app.runtime.register(Workflow("w", on="go", stages=[Stage("one")]))
