from __future__ import annotations

import asyncio
import os

import pytest

from piecework import Settings, Workspace, current_workspace
from piecework.errors import (
    ClosedError,
    CrossWorkspaceError,
    InvalidScopeError,
    InvalidStateError,
    TimeoutExceededError,
    ValidationError,
    WorkspacesLimitError,
)
from piecework.workspace.context import State


class Desk:
    """Something that a service is."""


@pytest.fixture
async def shop(make_app, database):
    """An open app with one service of a run; `shop.log` has what was closed."""
    app = make_app(database=database, config={"site": "News"})
    app.log = []

    @app.service(scope="run")
    async def desk() -> Desk:
        yield Desk()
        app.log.append("desk")

    async with app:
        yield app


@pytest.mark.covers("W2", "W57")
async def test_all_comes_through_workspace_run(shop, monkeypatch):
    """All that runs a function in a new workspace comes through `Workspace.run`, and does what that does."""
    told = []

    def tell(event):
        return shop.workspaces.on(event, lambda ws: told.append(event))

    offs = [tell(event) for event in ("created", "called", "closing", "closed")]
    seen = []

    async def child(ws, n):
        return n

    for call in (Workspace.run(shop, child, 1), shop.run_in_new_workspace(child, 1)):
        assert await call == 1
        seen.append(told.copy())
        told.clear()
    assert seen == [["created", "called", "closing", "closed"]] * 2
    for off in offs:
        off()

    async def replaced(where, fn, *args, **kwargs):
        return "replaced"

    async with shop.workspace() as ws:
        assert await Workspace.run(child, 2) == await Workspace.run(ws, child, 2) == 2
        monkeypatch.setattr(Workspace, "run", staticmethod(replaced))
        assert await ws.run_in_new_workspace(child, 1) == "replaced"
        assert await ws.map_in_workspaces(child, [1]) == ["replaced"]
        assert await ws.spawn_in_new_workspace(child, 1).result() == "replaced"
        assert await ws.workspace(space="acme").run(child, 1) == "replaced"
    assert await shop.run_in_new_workspace(child, 1) == "replaced"


@pytest.mark.covers("W5")
async def test_every_service_is_there(shop):
    """Every service that is registered, ours and the user's, can be had in a workspace."""
    async with shop.workspace() as ws:
        for name in ("database", "send_mail", "desk"):
            assert await ws.require(name) is not None
        assert (ws.config["site"], ws.environment, ws.params) == ("News", "development", {})
        assert callable(ws.run_in_new_workspace)


@pytest.mark.covers("W16", "W107")
async def test_a_child_inherits_what_is_said_and_nothing_else(shop):
    """Of space, params and user a child has what `inherit` names, as copies that nobody can change; else nothing."""

    async def child(ws):
        return ws.space, ws.params, ws.user, ws.key

    async with shop.workspace(space="acme", params={"ids": [1]}, user={"id": 7, "roles": ["a"]}, key="k") as ws:
        assert await ws.workspace().run(child) == (None, {}, None, None)
        space, params, user, _ = await ws.workspace(inherit=("space", "params", "user")).run(child)
        assert (space, params, user) == ("acme", {"ids": [1]}, {"id": 7, "roles": ["a"]})
        for change in (lambda: params.update(x=1), lambda: params["ids"].append(2), user["roles"].clear):
            with pytest.raises(InvalidStateError):
                change()
        assert (await ws.workspace(inherit="user", space="other").run(child))[0] == "other"
        with pytest.raises(ValidationError, match="session"):
            ws.workspace(inherit=("session",))


@pytest.mark.covers("W107")
async def test_a_child_ends_with_its_callers_time(shop):
    """A child that is awaited never outlives its caller's time limit; both are cleaned up and the error says so."""

    async def child(ws, desk):
        assert ws.deadline is not None
        await asyncio.Event().wait()

    async def parent(ws):
        theirs = await ws.workspace(timeout_seconds=3600).run(lambda ws: ws.deadline)
        assert abs((theirs - ws.deadline).total_seconds()) < 1
        await ws.workspace(timeout_seconds=3600).run(child)

    with pytest.raises(TimeoutExceededError, match=r"parent.*more than 2 s"):
        await shop.workspace(timeout_seconds=2).run(parent)
    assert shop.log == ["desk"]


@pytest.mark.covers("W107")
async def test_a_spawned_childs_log_lines_carry_the_callers_fields(shop, caplog):
    """The log lines of a spawned child carry what those of its caller carry."""
    from piecework.telemetry import logs

    async def child(ws):
        ws.logger.warning("from the child")

    async with shop.workspace() as ws:
        with logs.bind(run_id="run-7"):
            handle = ws.spawn_in_new_workspace(child)
        await handle.result()
    (line,) = [record.msg for record in caplog.records if record.getMessage().startswith("from the child")]
    assert line.fields["run_id"] == "run-7"


@pytest.mark.covers("W52")
async def test_siblings_of_a_failure(shop):
    """In a gather the siblings of a failing child finish; in a task group they are cancelled; each cleans up."""

    async def child(ws, n, desk):
        if n == 0:
            raise RuntimeError("first")
        await asyncio.sleep(0)
        return n

    results = await asyncio.gather(*(shop.run_in_new_workspace(child, n) for n in range(3)), return_exceptions=True)
    assert [type(results[0]), *results[1:]] == [RuntimeError, 1, 2]
    assert shop.log == ["desk"] * 3

    async def waits(ws, desk):
        await asyncio.Event().wait()

    async def together():
        async with asyncio.TaskGroup() as group:
            group.create_task(shop.run_in_new_workspace(waits))
            group.create_task(shop.run_in_new_workspace(child, 0))

    with pytest.raises(ExceptionGroup):
        await together()
    assert shop.log == ["desk"] * 5


@pytest.mark.covers("W60")
async def test_modules_are_imported_once_before_the_first_workspace(make_app, tmp_path, monkeypatch):
    """The app's modules are imported once, before the first workspace opens, and one that fails is named."""
    (tmp_path / "shop_services.py").write_text(
        "import builtins\nbuiltins.shop_imports = getattr(builtins, 'shop_imports', 0) + 1\n"
    )
    (tmp_path / "shop_broken.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    import builtins

    async with make_app(modules=("shop_services",)) as app:
        counts = await asyncio.gather(*(app.run_in_new_workspace(lambda: builtins.shop_imports) for _ in range(5)))
    assert counts == [1] * 5
    with pytest.raises(Exception, match="shop_broken"):
        async with make_app(modules=("shop_broken",)):
            pass


@pytest.mark.covers("W65")
async def test_a_workspace_is_closed_once(shop):
    """Closing is done once: a second one, also at the same time, waits for the first and does nothing."""
    opening = shop.workspace()
    ws = await opening.__aenter__()
    await ws.require("desk")
    container = ws.container
    await asyncio.gather(opening.__aexit__(None, None, None), container.dispose(), container.dispose())
    assert shop.log == ["desk"]
    with pytest.raises(ClosedError):
        await opening.__aexit__(None, None, None)
    with pytest.raises(InvalidStateError):
        await opening.__aenter__()


@pytest.mark.covers("W65", "W110")
async def test_the_states_of_a_workspace(shop):
    """A workspace is open, closing and closed, in this order, and its report tells when, where and what failed."""
    seen = []

    @shop.service(scope="run")
    async def bad(ctx):
        yield 1
        seen.append(ctx.workspace.phase)
        raise RuntimeError("cannot close")

    async def opened():
        async with opening as ws:
            seen.extend([ws, ws.phase, ws.report])
            await ws.require("desk")
            await ws.require("bad")

    opening = shop.workspace()
    with pytest.raises(ExceptionGroup):
        await opened()
    ws, *seen = seen
    assert [*seen, ws.phase] == [State.OPEN, None, State.CLOSING, State.CLOSED]
    assert (ws.report.id, ws.report.services) == (ws.id, ("bad", "desk"))
    assert ws.report.failures[0]["message"] == "cannot close"
    assert ws.report.duration_seconds >= 0
    with pytest.raises(ClosedError, match=rf"{ws.id} is closed \(at .*in test_workspaces_life\.py:\d+ in opened"):
        await ws.require("desk")


@pytest.mark.covers("W114")
async def test_a_closer_that_hangs_is_left_behind(make_app):
    """A closer that takes longer than `close_timeout_seconds` is reported, and the others run."""
    log = []
    app = make_app(settings=Settings(close_timeout_seconds=0.05))

    @app.service(scope="run")
    async def first():
        yield 1
        log.append("first")

    @app.service(scope="run")
    async def hangs(first):
        yield 1
        await asyncio.Event().wait()

    async with app:
        with pytest.raises(ExceptionGroup) as caught:
            async with app.workspace() as ws:
                await ws.require("hangs")
    assert log == ["first"]
    assert ws.report.failures[0]["code"] == caught.value.exceptions[0].code == "TIMEOUT"


@pytest.mark.covers("W72", "W73", "W77")
async def test_tenants_side_by_side(shop):
    """Each tenant's child has its own space, overrides and services, and nothing of another's."""
    meeting = asyncio.Barrier(2)

    async def work(ws, desk):
        desk.owner = ws.space
        await meeting.wait()
        return ws.space, desk.owner, await ws.run_in_new_workspace(lambda mailer: mailer)

    shop.service(scope="app", name="mailer")(lambda: "real")

    async def tenant(name):
        async with shop.workspace() as ws:
            with ws.override("mailer", f"mailer of {name}"):
                return await ws.workspace(space=name).run(work)

    assert await asyncio.gather(tenant("a"), tenant("b")) == [
        ("a", "a", "mailer of a"),
        ("b", "b", "mailer of b"),
    ]
    assert await shop.run_in_new_workspace(lambda mailer: mailer) == "real"


@pytest.mark.covers("W78")
async def test_the_environment_of_one_app_is_its_own(make_app, monkeypatch):
    """Configuration and environment are an app's own, and as before when it has ended."""
    monkeypatch.setenv("PIECEWORK_ENV", "test")
    before = dict(os.environ)
    async with make_app(config={"site": "A"}, env={"LIMIT": "1"}) as app, app.workspace() as ws:
        env = await ws.require("__env__")
        assert (ws.config["site"], ws.environment, env.get("LIMIT")) == ("A", "test", "1")
    assert dict(os.environ) == before


@pytest.mark.covers("W82")
async def test_an_empty_workspace_makes_nothing(shop):
    """An empty workspace opens no connection and builds nothing, not even a place for its services."""
    async with shop.workspace() as ws:
        assert ws._container is None
        assert shop.container.peek("application_database") is None
    assert ws._container is None


@pytest.mark.covers("W83")
async def test_who_comes_too_late_waits_in_turn(make_app):
    """At most `workspaces_limit` workspaces are open; further ones wait, first come first served."""
    order, most = [], 0
    async with make_app(settings=Settings(workspaces_limit=2)) as app:

        async def child(ws, n):
            nonlocal most
            order.append(n)
            most = max(most, app.workspaces.open)
            await asyncio.sleep(0)

        await asyncio.gather(*(app.run_in_new_workspace(child, n) for n in range(20)))
        assert app.workspaces.open == app.workspaces.waiting == 0
    assert (order, most) == (list(range(20)), 2)


@pytest.mark.covers("W83")
async def test_who_waits_too_long_is_told_who_has_the_places(make_app):
    """Who gets no place in time gets WORKSPACES_LIMIT, which names those that have them; the place stays free."""
    async with make_app(settings=Settings(workspaces_limit=1, workspaces_wait_seconds=0.05)) as app:
        release = asyncio.Event()

        async def holds(ws):
            await release.wait()
            return ws.id

        holder = app.spawn_in_new_workspace(holds)
        await asyncio.sleep(0)
        opening = app.workspace()
        with pytest.raises(WorkspacesLimitError, match=r"1 are open.*holds") as caught:
            await opening.__aenter__()
        release.set()
        assert caught.value.holders == [await holder.result()]
        assert await app.run_in_new_workspace(lambda: 1) == 1
        assert app.workspaces.open == 0


@pytest.mark.covers("W83", "W85")
async def test_nested_workspaces_never_wait_for_their_own(make_app):
    """Workspaces inside workspaces beyond the limit all finish: none waits for the place of its own ancestor."""
    async with make_app(settings=Settings(workspaces_limit=2)) as app:

        async def nested(ws, depth):
            if depth == 0:
                return 1
            return sum(await asyncio.gather(*(ws.run_in_new_workspace(nested, depth - 1) for _ in range(3))))

        async with asyncio.timeout(20):
            assert await asyncio.gather(*(app.run_in_new_workspace(nested, 3) for _ in range(4))) == [27] * 4
        assert app.workspaces.open == app.workspaces.waiting == 0


@pytest.mark.covers("W83")
async def test_who_gives_up_waiting_leaves_no_place_behind(make_app):
    """Who is cancelled while waiting takes no place, and the next in turn gets it."""
    async with make_app(settings=Settings(workspaces_limit=1)) as app:
        async with app.workspace():
            waiting = [asyncio.ensure_future(_in_context(app)) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
        assert await asyncio.gather(*waiting[1:]) == [1, 1]
        assert waiting[0].cancelled()
        assert app.workspaces.open == 0


@pytest.mark.covers("W83")
async def test_who_gives_up_as_a_place_comes_free_is_cancelled(make_app):
    """Who is cancelled in the very turn in which a place comes free is cancelled, and the next in line gets it."""
    async with make_app(settings=Settings(workspaces_limit=1)) as app:
        release = asyncio.Event()
        holder = asyncio.ensure_future(app.run_in_new_workspace(release.wait))
        await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(_in_context(app)) for _ in range(2)]
        while app.workspaces.waiting < 2:
            await asyncio.sleep(0)
        release.set()
        waiting[0].cancel()
        results = await asyncio.gather(holder, *waiting, return_exceptions=True)
        assert (type(results[1]), results[2]) == (asyncio.CancelledError, 1)
        assert app.workspaces.open == app.workspaces.waiting == 0


async def _in_context(app):
    return await app.run_in_new_workspace(lambda: 1)


@pytest.mark.covers("W96", "W102")
async def test_what_belongs_to_another_workspace_is_refused(shop):
    """What belongs to one workspace is refused inside a function that has another; plain values are handed over."""
    async with shop.workspace() as outer:
        outer.check_here("its database")

        async def child(ws, address):
            with pytest.raises(CrossWorkspaceError, match=f"{outer.id}.*{ws.id}"):
                outer.check_here("its database")
            async with ws.fork() as fork, shop.workspace() as beside:
                for mine in (ws, fork, beside):
                    mine.check_here("its database")
            return address

        assert await outer.run_in_new_workspace(child, "ada@example.org") == "ada@example.org"
        async with shop.workspace() as inner:
            outer.check_here("its database")
            inner.check_here("its database")


@pytest.mark.covers("W67")
async def test_after_commit_without_a_transaction_is_now(shop):
    """Without a transaction `after_commit` calls at once; an async function runs supervised."""
    done, release = [], asyncio.Event()

    async def later():
        done.append("later")
        release.set()

    async with shop.workspace() as ws:
        ws.after_commit(lambda: done.append("now"))
        assert done == ["now"]
        ws.after_commit(later)
        await release.wait()
        assert current_workspace() is ws
    with pytest.raises(ClosedError):
        ws.after_commit(later)


@pytest.mark.covers("W113")
async def test_a_wider_scope_may_not_need_a_narrower_one(make_app):
    """A service of the app whose parameters name one of a run is refused where it is declared, with both names."""
    app = make_app()
    app.service(scope="run", name="narrow")(lambda: 1)
    with pytest.raises(InvalidScopeError, match=r"narrow.*wide"):

        @app.service(scope="app")
        def wide(narrow):
            return narrow
