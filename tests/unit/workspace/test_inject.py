from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Annotated, Any

import pytest

from piecework.container.parameters import Use
from piecework.errors import NotFoundError
from piecework.workspace.calls import open_workspace
from piecework.workspace.inject import call_injected

if TYPE_CHECKING:
    from conftest import Host  # type: ignore[import-not-found]  # pytest puts the folder on the path
    from piecework.workspace.workspace import Workspace


class Clock:
    pass


@pytest.fixture
def services(host: Host) -> Host:
    host.service("run", "clock")(Clock)
    host.service("run", "limit")(lambda: 5)

    @host.service("transient")
    def send_mail() -> Any:
        async def send(to: str) -> str:
            return f"mail to {to}"

        return send

    return host


async def run(host: Host, fn: Any, *args: Any, **kwargs: Any) -> Any:
    async with open_workspace(host) as ws:
        result = await call_injected(fn, ws, args, kwargs)
        return "the workspace" if result is ws else result


async def test_the_parameter_named_ws_gets_the_workspace(services: Host) -> None:
    """A parameter named `ws` is filled with the workspace wherever it stands."""

    async def first(ws: Any, a: int) -> Any:
        return ws if a == 1 else None

    async def last(a: int, *, ws: Any) -> Any:
        return ws if a == 1 else None

    assert await run(services, first, 1) == "the workspace"
    assert await run(services, last, 1) == "the workspace"


async def test_a_parameter_annotated_workspace_gets_it_too(services: Host) -> None:
    """Whatever its name, a parameter annotated `Workspace` is filled with it."""

    async def fn(a: int, place: Workspace) -> Any:
        return place if a == 1 else None

    assert await run(services, fn, 1) == "the workspace"


async def test_given_arguments_win_over_injection(services: Host) -> None:
    """Positionals fill the others in order, keywords theirs, even where a service has the name."""

    async def fn(ws: Any, a: int, limit: int, *rest: int, b: int = 4, **more: int) -> Any:
        return a, limit, rest, b, more

    assert await run(services, fn, 1, 2, 3, c=6) == (1, 2, (3,), 4, {"c": 6})
    assert await run(services, fn, 1, limit=9, b=5) == (1, 9, (), 5, {})
    assert await run(services, lambda ws: ws, ws="mine") == "mine"


async def test_what_is_left_is_a_service(services: Host) -> None:
    """Parameters without value and default are services: by `Use`, by type, by name."""

    async def fn(a: int, limit: int, x: Annotated[int, Use("limit")], y: Clock, z: int = 7) -> Any:
        return a, limit, x, type(y), z

    assert await run(services, fn, 1) == (1, 5, 5, Clock, 7)


async def test_a_lambda_that_calls_a_service_is_awaited(services: Host) -> None:
    """What a synchronous function returns is awaited if it can be."""
    assert await run(services, lambda send_mail: send_mail("ada")) == "mail to ada"


async def test_a_parameter_that_nothing_fills_is_named(services: Host) -> None:
    """A missing argument that is no service fails with the parameter and the near names."""
    with pytest.raises(NotFoundError, match=r"did you mean 'limit'.*Parameter 'limt' of"):
        await run(services, lambda limt: limt)


async def test_wrong_arguments_are_pythons_own_error(services: Host) -> None:
    """Too many or doubled arguments are the TypeError that Python raises."""

    async def fn(ws: Any, a: int) -> None: ...

    with pytest.raises(TypeError, match="positional"):
        await run(services, fn, 1, 2)
    with pytest.raises(TypeError, match="multiple values"):
        await run(services, fn, 1, a=2)


async def test_a_synchronous_function_runs_in_a_thread_and_an_async_one_on_the_loop(services: Host) -> None:
    """Code that blocks never blocks the loop."""

    async def on_loop() -> int:
        return threading.get_ident()

    class Callable:
        async def __call__(self) -> int:
            return threading.get_ident()

    here = threading.get_ident()
    assert await run(services, threading.get_ident) != here
    assert await run(services, on_loop) == here
    assert await run(services, Callable()) == here
    assert await run(services, functools.partial(on_loop)) == here


async def test_a_bound_method_gets_its_services(services: Host) -> None:
    """Methods are injected like functions."""

    class Handler:
        async def handle(self, ws: Any, limit: int) -> Any:
            return limit

    assert await run(services, Handler().handle) == 5
