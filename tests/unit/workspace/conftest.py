from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from piecework.clock import SystemClock
from piecework.config import Settings
from piecework.container.container import Container
from piecework.container.registry import Recipe, Registry
from piecework.container.scope import Scope, parse
from piecework.workspace.admission import Workspaces
from piecework.workspace.supervise import Supervisor
from piecework.workspace.threads import SyncThreads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Host:
    """The least that can host workspaces; remembers what was published and enqueued."""

    name = "test"
    environment = "test"

    def __init__(self) -> None:
        self.container = Container("app", level=Scope.APP, registry=Registry())
        self.config = {"site": "News"}
        self.settings = Settings(close_timeout_seconds=5)
        self.clock = SystemClock()
        self.threads = SyncThreads(4)
        self.supervisor = Supervisor()
        self.workspaces = Workspaces()
        self.transaction: Any = None
        self.sent: list[tuple[Any, ...]] = []

    def service(self, scope: str, name: str | None = None) -> Callable[[Any], Any]:
        """Declares a service, as an app does."""

        def declare(factory: Any) -> Any:
            self.container.registry.add(Recipe(name or factory.__name__, factory, parse(scope)))
            return factory

        return declare

    def current_transaction(self, ws: Any) -> Any:
        return self.transaction

    async def promise_event(self, workspace_id: str, type: str, payload: dict[str, Any], **told: Any) -> None:  # noqa: A002 - the face
        self.transaction.promised.append((workspace_id, type, payload, told["id"], told["space"]))

    async def promise_job(self, workspace_id: str, name: str, args: dict[str, Any], **told: Any) -> None:
        self.transaction.promised.append((workspace_id, name, args, told["run_id"], told["space"]))

    def refuse_running(self, ws: Any, name: str) -> None:
        """Refuses nothing."""

    async def publish(self, type: str, payload: dict[str, Any], *, id: str | None, space: str | None) -> Any:  # noqa: A002 - the face
        self.sent.append((type, payload, id, space))

    async def enqueue(
        self,
        name: str,
        args: dict[str, Any],
        *,
        run_id: str | None = None,
        delay_seconds: float | None = None,
        dedup: str | None = None,
        space: str | None = None,
        overrides: Any = None,
    ) -> str:
        self.sent.append((name, args, space))
        return "run-1"

    async def job_value(self, run_id: str) -> Any:
        return f"value of {run_id}"

    async def call_command(self, ws: Any, name: str, params: Any, *, key: str | None) -> Any:
        return (name, params, key)


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.threads.close()
