from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from piecework.errors import ValidationError
from piecework.workspace.admission import Workspaces
from piecework.workspace.calls import open_workspace
from piecework.workspace.context import State
from piecework.workspace.inheriting import FrozenDict, FrozenList, frozen

if TYPE_CHECKING:
    from conftest import Host  # type: ignore[import-not-found]  # pytest puts the folder on the path
    from piecework.workspace.workspace import Workspace


def test_there_has_to_be_a_place() -> None:
    """A limit below one is refused."""
    with pytest.raises(ValidationError, match="workspaces_limit"):
        Workspaces(0)


async def test_who_hears_of_them(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    """Listeners hear of workspaces and forks; one that raises is told in the log and stops nothing."""
    heard: list[tuple[State, bool]] = []

    def listen(ws: Workspace) -> None:
        heard.append((ws.phase, ws.parent is None))
        raise RuntimeError("a listener's own")

    offs = [host.workspaces.on(event, listen) for event in ("created", "closing", "closed")]
    with pytest.raises(ValidationError, match="born"):
        host.workspaces.on("born", listen)
    async with open_workspace(host) as ws, ws.fork():
        pass
    for off in offs:
        off()
    assert heard == [
        (State.OPEN, True),
        (State.OPEN, False),
        (State.CLOSING, False),
        (State.CLOSED, False),
        (State.CLOSING, True),
        (State.CLOSED, True),
    ]
    assert "a listener's own" in caplog.text
    assert host.workspaces.listeners is None


async def test_forks_take_no_place(host: Host) -> None:
    """A fork is part of its root: it counts no further."""
    async with open_workspace(host) as ws, ws.fork(), ws.fork() as fork:
        assert host.workspaces.all() == [ws]
        async with fork.workspace() as nested:
            assert host.workspaces.all() == [ws, nested]
    assert host.workspaces.open == 0


def test_frozen_copies_equal_what_they_are_of() -> None:
    """A frozen copy equals the original, and thaws by copying."""
    import copy

    original = {"ids": [1, {"a": 2}], "pair": (1, [2]), "set": {1}}
    copied = frozen(original)
    assert copied == original
    assert (type(copied), type(copied["ids"])) == (FrozenDict, FrozenList)
    original["ids"].append(3)  # type: ignore[attr-defined]  # a list
    assert len(copied["ids"]) == 2
    thawed = copy.deepcopy(copied)
    thawed["ids"].append(9)
    assert type(thawed) is dict
