"""Piecework's services as dependencies of FastAPI.

    ledger: Annotated[Ledger, Depends(piecework_service(Ledger))]

Promises: each request, and each WebSocket, has one fresh workspace that all its dependencies share; it is closed
after the response, however the handler ended. The error of a handler wins over what fails while closing: that is
written onto it as notes, and logged.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable  # noqa: TC003 - FastAPI reads annotations as it runs
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, overload

from piecework.app import ATTACHED_AS
from piecework.errors import ClosedError, InvalidStateError, MissingExtraError
from piecework.workspace.workspace import Workspace  # noqa: TC001 - FastAPI reads annotations as it runs

try:
    from fastapi import Depends
    from fastapi.requests import HTTPConnection  # noqa: TC002 - as above
except ModuleNotFoundError as error:
    if error.name != "fastapi":
        raise
    raise MissingExtraError.needs("the bridge to FastAPI", "fastapi") from error

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from starlette.applications import Starlette

    from piecework.app import App

T = TypeVar("T")


def attach(api: Starlette, app: App) -> None:
    """Tells a web application which App its requests work with; applications that are mounted in it find it too.

    The App is not opened here: `FastAPI(lifespan=app.lifespan)` does that, and attaches it by itself; a lifespan of
    your own does `async with app: yield`. A second call replaces the first. Where `api` is itself mounted in another
    application, those that are mounted in it need a call of their own.

    Args:
        api: The FastAPI or Starlette application.
        app: The App, open or not yet.
    """
    setattr(api.state, ATTACHED_AS, app)
    # A mounted application takes the outer one's place in what a request knows; the outermost router stays.
    setattr(api.router, ATTACHED_AS, app)


async def piecework_workspace(connection: HTTPConnection) -> AsyncIterator[Workspace]:
    """Gives the workspace of the request: a dependency, `Annotated[Workspace, Depends(piecework_workspace)]`.

    Where requests have a tenant or a user, let a dependency of your own open it, and put that in the place of this
    one: `api.dependency_overrides[piecework_workspace] = my_workspace`.

    Args:
        connection: The request or the WebSocket; FastAPI gives it.

    Raises:
        InvalidStateError: No App is attached to the web application.
        ClosedError: The App is not open.
        ExceptionGroup: The handler succeeded, and closing failed.
    """
    async with _opened(_app_of(connection)) as ws:
        yield ws


@overload
def piecework_service(key: type[T]) -> Callable[..., Awaitable[T]]: ...
@overload
def piecework_service(key: str) -> Callable[..., Awaitable[Any]]: ...
def piecework_service(key: str | type) -> Callable[..., Awaitable[Any]]:
    """Makes the dependency that gives a service in the request's workspace: `Depends(piecework_service("ledger"))`.

    Two that were made for one key are equal: FastAPI asks once a request, and
    `api.dependency_overrides[piecework_service("ledger")] = fake` replaces all of them.

    Args:
        key: The service's name or type. That there is one is seen at the request: NotFoundError, with near names.
    """
    return _Service(key)


@dataclass(frozen=True, slots=True)
class _Service:
    key: str | type

    async def __call__(self, ws: Annotated[Workspace, Depends(piecework_workspace)]) -> Any:
        return await ws.require(self.key)


def _opened(app: App) -> AbstractAsyncContextManager[Workspace]:
    try:
        app.container.check_open()
    except ClosedError as error:
        raise ClosedError(
            f"app {app.name!r} is not open: open it in the lifespan of the web application, `async with app: yield`. "
            "A test client runs the lifespan only inside `with TestClient(api)`",
            name=app.name,
        ) from error
    return app.workspace()


def _app_of(connection: HTTPConnection) -> App:
    """Finds the nearest App: of the application that serves the request, else of the outermost one."""
    scope = connection.scope
    for place in (getattr(scope.get("app"), "state", None), scope.get("router")):
        app: App | None = getattr(place, ATTACHED_AS, None)
        if app is not None:
            return app
    raise InvalidStateError(
        f"no Piecework app is attached to the application that serves {connection.url.path}: "
        "call piecework.bridges.fastapi.attach(api, app) where that is made"
    )
