"""A process is killed with SIGKILL between the application's database and the store; what it promised comes once."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from test_node_killed import node, steps  # noqa: F401 - a fixture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from test_node_killed import Node

PLACES = [
    "before the commit",
    "after the commit",
    "before 0",
    *(f"after {number}" for number in range(5)),
    "before forgetting",
    "after forgetting",
]


@pytest.fixture
def app_database(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The application's database, of the same kind as the store and another one than that."""
    if engine == "sqlite":
        yield f"sqlite:///{tmp_path / 'app.db'}"
        return
    databases = request.getfixturevalue("postgres_databases")
    url = databases.fresh()
    yield url
    databases.drop(url)


@pytest.mark.covers("N185")
@pytest.mark.parametrize("place", PLACES)
async def test_what_was_promised_survives_a_kill(node: Node, place: str, app_database: str, monkeypatch) -> None:  # noqa: F811
    """Killed anywhere between the two databases, what the committed transaction promised is there once, in order."""
    monkeypatch.setenv("DATABASE_OF_THE_TEST", app_database)
    assert await node.run("orders.py", place) == signal.SIGKILL
    told = await node.run("orders.py", place)
    assert isinstance(told, dict)
    assert told["orders"] == 1
    assert told["runs"] == ["deliver-notifications", "send-mail", "send-mail", "ship", "told", "told"]
    assert told["accepted"] == sorted(told["accepted"])
    assert {tuple(step) for step in steps(node)} == {("event", "0"), ("event", "1")}
    await node.check_store()
