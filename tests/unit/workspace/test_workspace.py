from __future__ import annotations

import asyncio
import gc
import inspect
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from piecework.container.container import Container
from piecework.container.registry import Recipe, Registry
from piecework.container.scope import Scope
from piecework.errors import ClosedError, InvalidStateError, NotFoundError, ValidationError
from piecework.workspace.calls import map_in_workspaces, open_workspace, run_in_new_workspace
from piecework.workspace.context import current_workspace
from piecework.workspace.workspace import ATTRIBUTES, Workspace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from conftest import Host  # type: ignore[import-not-found]  # pytest puts the folder on the path


class Reports:
    pass


@pytest.fixture
def log(host: Host) -> list[str]:
    """What services told while they were closed."""
    log: list[str] = []

    @host.service("run")
    async def reports() -> AsyncIterator[Reports]:
        yield Reports()
        log.append("reports")

    @host.service("app")
    def shared() -> Reports:
        return Reports()

    @host.service("transient")
    def send_mail(ctx: Any) -> Any:
        ctx.on_cleanup(lambda: log.append(f"mail {ctx.workspace.key}"))

        async def send(to: str) -> tuple[str | None, str]:
            return ctx.workspace.key, to

        return send

    return log


async def test_what_it_is_opened_with(host: Host) -> None:
    """A workspace knows its params, space, user, key, run and app."""
    params = {"id": 7}
    async with open_workspace(host, space="acme", user="ada", params=params, key="k", run_id="r1") as ws:
        assert (ws.params, ws.space, ws.user, ws.key, ws.run_id) == ({"id": 7}, "acme", "ada", "k", "r1")
        assert ws.params is not params
        assert (ws.config, ws.environment) == ({"site": "News"}, "test")
        assert ws.root is ws
        assert ws.parent is None


async def test_two_workspaces_share_nothing_but_the_app(host: Host, log: list[str]) -> None:
    """Ids and run services differ, app services are the same."""
    async with open_workspace(host) as one, open_workspace(host) as two:
        assert one.id != two.id
        assert await one.require("reports") is not await two.require("reports")
        assert await one.require("shared") is await two.require("shared")


async def test_a_service_registered_later_is_found(host: Host) -> None:
    """A service that is declared while workspaces are open is available."""
    async with open_workspace(host) as ws:
        host.service("run", "late")(Reports)
        assert isinstance(ws.late, Reports)


async def test_services_are_had_by_name_by_type_and_as_attributes(host: Host, log: list[str]) -> None:
    """`ws.name`, `require(name)` and `require(Type)` give the same instance."""
    host.service("run", "plain")(Reports)
    async with open_workspace(host) as ws:
        assert ws.plain is await ws.require("plain")
        reports = await ws.require("reports")
        assert ws.reports is reports


async def test_an_asynchronous_service_is_no_attribute_before_it_is_awaited(host: Host, log: list[str]) -> None:
    """Reading it says which line to write."""
    async with open_workspace(host) as ws:
        with pytest.raises(InvalidStateError, match=r"await ws\.require\('reports'\)"):
            _ = ws.reports


async def test_an_unknown_attribute_suggests_names(host: Host, log: list[str]) -> None:
    """An unknown service is an AttributeError with the nearest names, so hasattr works."""
    async with open_workspace(host) as ws:
        with pytest.raises(AttributeError, match="did you mean 'send_mail'"):
            _ = ws.sendmail
        assert not hasattr(ws, "unknown")


async def test_the_workflow_comes_before_the_app(host: Host) -> None:
    """`parents` says where services are looked for, in order."""
    registry = Registry([Recipe("limit", lambda: 900, Scope.WORKFLOW)])
    host.service("app", "limit")(lambda: 500)
    workflow = Container("workflow", level=Scope.WORKFLOW, registry=registry, parents=[host.container])
    async with open_workspace(host, parents=(workflow, host.container)) as inner, open_workspace(host) as outer:
        assert (inner.limit, outer.limit) == (900, 500)


async def test_a_workflow_service_is_refused_in_a_bare_workspace(host: Host) -> None:
    """Outside of a workflow its scope has no place; the message says so."""
    host.service("workflow", "cache")(dict)
    async with open_workspace(host) as ws:
        with pytest.raises(NotFoundError, match="a step of a workflow"):
            await ws.require("cache")


async def test_publish_and_enqueue_use_the_workspaces_space(host: Host) -> None:
    """What is published or enqueued belongs to the workspace's space unless another is named."""
    async with open_workspace(host, space="acme") as ws:
        await ws.publish("article.new", {"id": 7}, id="e7")
        await ws.publish("article.new", space="other")
        assert await ws.enqueue_job("deliver", limit=5) == "run-1"
    assert host.sent == [
        ("article.new", {"id": 7}, "e7", "acme"),
        ("article.new", {}, None, "other"),
        ("deliver", {"limit": 5}, "acme"),
    ]


def test_its_own_names_are_known() -> None:
    """The names that cannot be services as attributes are listed."""
    assert {"require", "fork", "params", "id"} <= ATTRIBUTES


async def test_everything_is_closed_before_the_caller_goes_on(host: Host, log: list[str]) -> None:
    """Closers have run when the block is left, the last opened first."""
    async with open_workspace(host, key="k") as ws:
        await ws.require("reports")
        await ws.require("send_mail")
        assert log == []
    assert log == ["mail k", "reports"]


async def test_the_error_of_the_body_wins(caplog: pytest.LogCaptureFixture, host: Host) -> None:
    """A failing body raises its own error with the failures of closing noted; those are logged."""
    host.service("run", "bad")(lambda ctx: ctx.on_cleanup(lambda: 1 / 0))
    with pytest.raises(KeyError) as caught:  # noqa: PT012 - the whole block is what fails
        async with open_workspace(host) as ws:
            await ws.require("bad")
            raise KeyError("body")
    assert any("ZeroDivisionError" in note for note in caught.value.__notes__)
    lines = [record.msg for record in caplog.records]
    assert [(line.event, line.fields["workspace_id"]) for line in lines] == [("workspace.close_failed", ws.id)]


async def test_failures_of_closing_alone_are_a_group(host: Host) -> None:
    """When the body succeeded, what failed while closing is raised together."""
    host.service("run", "bad")(lambda ctx: ctx.on_cleanup(lambda: 1 / 0))
    with pytest.raises(ExceptionGroup, match="workspace close"):
        async with open_workspace(host) as ws:
            await ws.require("bad")


async def test_cancellation_wins_and_closing_completes(host: Host, log: list[str]) -> None:
    """A cancelled body ends cancelled, after every closer."""
    inside = asyncio.Event()

    async def body() -> None:
        async with open_workspace(host) as ws:
            await ws.require("reports")
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(body())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log == ["reports"]


async def test_a_closed_workspace_refuses_with_its_id(host: Host, log: list[str]) -> None:
    """Services, forks, events and jobs of a closed workspace are ClosedError with its id."""
    async with open_workspace(host) as ws:
        send_mail = ws.send_mail
    assert ws.closed
    with pytest.raises(ClosedError, match=ws.id):
        await ws.require("shared")
    with pytest.raises(ClosedError, match=ws.id):
        _ = ws.shared
    with pytest.raises(ClosedError, match=ws.id):
        ws.fork()
    with pytest.raises(ClosedError, match=ws.id):
        await ws.publish("x")
    with pytest.raises(ClosedError, match=ws.id):
        await ws.enqueue_job("x")
    assert callable(send_mail)


async def test_an_empty_workspace_starts_no_task(host: Host) -> None:
    """Opening and closing a workspace without closers starts no task."""
    before = asyncio.all_tasks()
    async with open_workspace(host):
        assert asyncio.all_tasks() == before
    assert asyncio.all_tasks() == before


async def test_closed_workspaces_leave_nothing_in_memory(host: Host, log: list[str]) -> None:
    """A thousand workspaces, with forks and services, are gone once they are closed."""
    alive: list[weakref.ref[Any]] = []
    for _ in range(1000):
        async with open_workspace(host) as ws:
            alive += [weakref.ref(ws), weakref.ref(ws.container), weakref.ref(await ws.require("reports"))]
            async with ws.fork(key="k") as fork:
                alive.append(weakref.ref(fork))
                await fork.require("send_mail")
    del ws, fork
    gc.collect()
    assert not any(reference() for reference in alive)


async def test_the_current_workspace_is_the_innermost_open_one(host: Host) -> None:
    """`current_workspace` follows the blocks; outside of any it is refused."""
    async with open_workspace(host) as outer:
        assert current_workspace() is outer
        async with open_workspace(host) as inner:
            assert current_workspace() is inner
        assert current_workspace() is outer
    with pytest.raises(InvalidStateError):
        current_workspace()


async def test_a_task_that_outlives_its_workspace_is_told(host: Host) -> None:
    """What runs on after the workspace gets ClosedError, not a closed workspace."""
    gate = asyncio.Event()

    async def later() -> Workspace:
        await gate.wait()
        return current_workspace()

    async with open_workspace(host) as ws:
        task = asyncio.ensure_future(later())
        await asyncio.sleep(0)
    gate.set()
    with pytest.raises(ClosedError, match=ws.id):
        await task


async def test_a_fork_shares_the_run_services_and_has_its_own_params_and_key(host: Host, log: list[str]) -> None:
    """A fork sees its root's run services; params, key and logger are its own."""
    async with open_workspace(host, params={"a": 1}, key="root", space="acme", user="ada") as ws:
        async with ws.fork(key="step", params={"b": 2}, logger="mine") as fork:
            assert await fork.require("reports") is await ws.require("reports")
            assert (fork.params, fork.key, fork.logger) == ({"b": 2}, "step", "mine")
            assert (fork.space, fork.user, fork.root, fork.parent) == ("acme", "ada", ws, ws)
            async with fork.fork() as deeper:
                assert (deeper.root, deeper.parent, deeper.key, deeper.params) == (ws, fork, None, {})
        assert ws.params == {"a": 1}
        assert not ws.closed
    assert log == ["reports"]


async def test_a_transient_service_sees_the_fork_that_asks(host: Host, log: list[str]) -> None:
    """A transient service gets the key of the workspace that asks, and is closed with that one."""
    async with open_workspace(host, key="root") as ws:
        async with ws.fork(key="step") as fork:
            assert await fork.send_mail("ada") == ("step", "ada")
            assert await ws.send_mail("ada") == ("root", "ada")
        assert log == ["mail step"]


async def test_a_fork_is_closed_when_its_root_is(host: Host) -> None:
    """A fork that outlives its root refuses too."""
    async with open_workspace(host) as ws:
        opened = ws.fork()
        fork = await opened.__aenter__()
    assert fork.closed
    with pytest.raises(ClosedError, match=fork.id):
        await fork.require("anything")
    await opened.__aexit__(None, None, None)


async def test_a_function_runs_in_a_fresh_workspace(host: Host, log: list[str]) -> None:
    """The child has an id, context and services of its own, and is closed before its value is returned."""

    async def child(ws: Workspace, a: int, *, b: int) -> tuple[Workspace, Any, int]:
        return ws, await ws.require("reports"), a + b

    async with open_workspace(host, params={"mine": 1}, space="acme", user="ada") as ws:
        mine = await ws.require("reports")
        inner, theirs, value = await ws.run_in_new_workspace(child, 1, b=2)
        assert log == ["reports"]
        assert (inner.closed, inner.root, inner.params, inner.space, inner.user) == (True, inner, {}, None, None)
        assert inner.id != ws.id
        assert theirs is not mine
        assert value == 3


async def test_an_error_reaches_the_caller_as_itself(host: Host, log: list[str]) -> None:
    """What the function raises is raised unchanged, and the caller's workspace works on."""
    error = KeyError("x")

    async def child(ws: Workspace) -> None:
        await ws.require("reports")
        raise error

    async with open_workspace(host) as ws:
        with pytest.raises(KeyError) as caught:
            await ws.run_in_new_workspace(child)
        assert caught.value is error
        assert log == ["reports"]
        assert await ws.require("shared")


async def test_a_reference_to_it_works_after_the_workspace_is_closed(host: Host) -> None:
    """`run = ws.run_in_new_workspace` can be kept and called later."""
    async with open_workspace(host) as ws:
        run = ws.run_in_new_workspace
    assert await run(lambda: 7) == 7


@pytest.mark.parametrize("thing", [3, "name", None])
async def test_what_cannot_be_called_is_refused_first(host: Host, thing: Any) -> None:
    """Something that is no function is a TypeError before a workspace is opened."""
    with pytest.raises(TypeError, match="a workspace runs a function"):
        await run_in_new_workspace(host, thing)


async def test_a_coroutine_is_refused_with_advice(host: Host) -> None:
    """Passing `fn()` for `fn` says so, and leaves no coroutine un-awaited."""

    async def child() -> None: ...

    coroutine = child()
    with pytest.raises(TypeError, match="pass the function itself"):
        await run_in_new_workspace(host, coroutine)  # type: ignore[arg-type]  # which is what is tested
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


async def test_concurrent_workspaces_do_not_see_each_other(host: Host) -> None:
    """Twenty children that count in a service of the same name each count alone."""
    host.service("run", "counter")(list)

    async def child(ws: Workspace, number: int) -> tuple[int, int]:
        for _ in range(number):
            ws.counter.append(1)
            await asyncio.sleep(0)
        return number, len(ws.counter)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run_in_new_workspace(host, child, (n,))) for n in range(20)]
    assert [task.result() for task in tasks] == [(n, n) for n in range(20)]


async def test_map_gives_results_in_order_and_keeps_to_its_limit(host: Host) -> None:
    """Results come in the items' order; never more than `limit` are open."""
    open_now: set[str] = set()
    most: list[int] = []

    async def child(ws: Workspace, item: int) -> int:
        open_now.add(ws.id)
        most.append(len(open_now))
        for _ in range(3 - item % 3):
            await asyncio.sleep(0)
        open_now.discard(ws.id)
        return item * 2

    async with open_workspace(host) as ws:
        assert await ws.map_in_workspaces(child, range(25), limit=4) == [n * 2 for n in range(25)]
    assert max(most) == 4


async def test_map_raises_the_first_failure_as_itself_and_ends_the_others(host: Host, log: list[str]) -> None:
    """One failing item raises its own error; the others are cancelled and closed."""
    both = asyncio.Barrier(2)

    async def child(ws: Workspace, item: int) -> None:
        await ws.require("reports")
        await both.wait()
        if item == 0:
            raise KeyError("x")
        await asyncio.Event().wait()

    with pytest.raises(KeyError):
        await map_in_workspaces(host, child, [0, 1], limit=2)
    assert log == ["reports", "reports"]


async def test_map_refuses_a_limit_below_one(host: Host) -> None:
    """A limit that would never start anything is refused."""
    with pytest.raises(ValidationError):
        await map_in_workspaces(host, print, [1], limit=0)


async def test_a_spawned_child_outlives_the_workspace_that_started_it(host: Host) -> None:
    """The caller goes on and closes; the child ends later and its value can be had."""
    gate = asyncio.Event()

    async def child(ws: Workspace, value: int) -> int:
        await gate.wait()
        return value

    async with open_workspace(host) as ws:
        handle = ws.spawn_in_new_workspace(child, 7)
    assert not handle.done
    gate.set()
    assert await handle.result() == 7
    assert (host.supervisor.running, host.supervisor.failed) == (0, 0)


async def test_a_spawned_child_inherits_no_variables(host: Host) -> None:
    """A child's context is its own: the workspace of its parent is not current in it."""

    async def child() -> Workspace:
        return current_workspace()

    async with open_workspace(host) as ws:
        handle = ws.spawn_in_new_workspace(child)
        assert (await handle.result()).id != ws.id


async def test_a_failing_child_is_recorded_and_never_reaches_the_caller(
    caplog: pytest.LogCaptureFixture, host: Host
) -> None:
    """A spawned child's error is logged, counted and had from its handle only."""

    async def child() -> None:
        raise KeyError("lost mail")

    async with open_workspace(host) as ws:
        handle = ws.spawn_in_new_workspace(child)
        with pytest.raises(KeyError):
            await handle.result()
    assert host.supervisor.failed == 1
    lines = [record.msg for record in caplog.records]
    assert [(line.event, line.fields["error"]["message"]) for line in lines] == [
        ("workspace.child_failed", "'lost mail'")
    ]


async def test_a_kept_handle_keeps_no_workspace(host: Host) -> None:
    """The handle of a failed child does not hold on to the child's workspace."""
    alive: list[weakref.ref[Workspace]] = []

    async def child(ws: Workspace) -> None:
        alive.append(weakref.ref(ws))
        raise KeyError("x")

    async with open_workspace(host) as ws:
        handle = ws.spawn_in_new_workspace(child)
        with pytest.raises(KeyError):
            await handle.result()
    gc.collect()
    assert handle.done
    assert [reference() for reference in alive] == [None]
