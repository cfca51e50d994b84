from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Annotated

import pytest

from piecework import PieceworkError, Settings, Use, Workspace, current_workspace
from piecework.errors import ClosedError, CycleError, InvalidScopeError, NotFoundError


class Thing:
    """Something that a service is."""


@pytest.fixture
async def shop(store, database, mail_server, make_app):
    """An open app with a database, mail, and a service of each scope; `shop.log` has what was closed."""
    app = make_app(database=database, mail=mail_server.url, config={"site": "News"})
    app.log = []

    @app.service(scope="run")
    async def fresh(ctx):
        thing = Thing()
        yield thing
        app.log.append("fresh")

    @app.service(scope="app")
    def shared():
        return Thing()

    @app.service(scope="transient")
    def each():
        return Thing()

    async with app:
        async with app.workspace() as ws:
            await ws.database.run("create table comments (id integer primary key, body text, post_id integer)")
        yield app


@pytest.mark.covers("W1", "W6")
async def test_a_new_workspace_shares_nothing_with_its_caller(shop):
    """A function in a new workspace has an id, params and services of its own; the caller's are as they were."""

    async def child(ws):
        ws.params["n"] = 99
        return ws.id, dict(ws.params), await ws.require("fresh")

    async with shop.workspace(params={"n": 1}) as ws:
        mine = await ws.require("fresh")
        child_id, params, theirs = await ws.run_in_new_workspace(child)
        assert child_id != ws.id
        assert params == {"n": 99}
        assert theirs is not mine
        assert ws.params == {"n": 1}
        assert await ws.require("fresh") is mine


@pytest.mark.covers("W3")
@pytest.mark.parametrize("value", [None, 7, object()])
async def test_what_the_function_returns_is_what_comes_back(app, value):
    """Async and plain functions are both taken; what they return comes back as it is."""

    async def asynchronous(ws):
        return value

    def plain(ws):
        return value

    def returns_awaitable(ws):
        return asynchronous(ws)

    for fn in (asynchronous, plain, returns_awaitable):
        assert await app.run_in_new_workspace(fn) is value


@pytest.mark.covers("W3")
async def test_what_cannot_be_called_is_a_type_error(app):
    """What is no function is refused with TypeError before a workspace is opened."""
    with pytest.raises(TypeError):
        await app.run_in_new_workspace("text")


@pytest.mark.covers("W4")
async def test_parameters_are_filled_with_services(shop):
    """A function gets the new workspace as `ws`, and its other parameters as services: by `Use`, by type, by name."""

    async def child(ws, fresh, other: Annotated[Thing, Use("shared")]):
        return ws, fresh is await ws.require("fresh"), other is await ws.require("shared")

    async def annotated(where: Workspace, n):
        return where, n

    async with shop.workspace() as caller:
        ws, by_name, by_use = await caller.run_in_new_workspace(child)
        assert ws is not caller
        assert by_name
        assert by_use
        where, n = await caller.run_in_new_workspace(annotated, 7)
        assert (isinstance(where, Workspace), n) == (True, 7)


@pytest.mark.covers("W7")
async def test_a_service_declared_later_is_there(app):
    """A service that is declared while the app is open is in workspaces opened from then on."""

    @app.service(scope="run")
    def late():
        return "here"

    assert await app.run_in_new_workspace(lambda late: late) == "here"


@pytest.mark.covers("W8")
async def test_clean_up_is_over_when_the_caller_goes_on(shop):
    """When an awaited child has returned, its clean-up has run, exactly once."""

    async def child(fresh):
        return len(shop.log)

    assert await shop.run_in_new_workspace(child) == 0
    assert shop.log == ["fresh"]


@pytest.mark.covers("W9", "W15")
async def test_children_side_by_side_do_not_see_each_other(shop):
    """Twenty children at once that each change what has the same name see only their own."""
    meeting = asyncio.Barrier(20)

    async def child(ws, n, fresh):
        ws.params["n"] = fresh.n = n
        await meeting.wait()
        return ws.params["n"], fresh.n

    found = await asyncio.gather(*(shop.run_in_new_workspace(child, n) for n in range(20)))
    assert found == [(n, n) for n in range(20)]


@pytest.mark.covers("W11")
@pytest.mark.parametrize("end", [RuntimeError, asyncio.CancelledError, TimeoutError, SystemExit, KeyboardInterrupt])
async def test_clean_up_runs_however_it_ends(shop, end):
    """Clean-up runs whatever ends the function: an error, a cancellation, a timeout, an interrupt."""

    async def ends():
        async with shop.workspace() as ws:
            await ws.require("fresh")
            raise end

    with pytest.raises(end):
        await ends()
    assert shop.log == ["fresh"]


@pytest.mark.covers("W11")
async def test_clean_up_runs_when_a_service_cannot_be_made(shop):
    """When making one service fails, those that were made before are closed."""

    @shop.service(scope="run")
    def broken():
        raise RuntimeError("no such host")

    with pytest.raises(RuntimeError, match="no such host"):
        await shop.run_in_new_workspace(lambda fresh, broken: None)
    assert shop.log == ["fresh"]


@pytest.mark.covers("W12", "W27", "W68")
async def test_a_spawned_child_goes_on_after_the_request(shop):
    """A spawned child goes on after the workspace that started it has returned, and changes nothing there."""
    release = asyncio.Event()

    async def child(ws):
        await release.wait()
        ws.params["n"] = 99
        return ws.params["n"]

    async def request(ws):
        handle = ws.spawn_in_new_workspace(child)
        return "/redirect", handle, ws.params

    redirect, handle, params = await shop.run_in_new_workspace(request)
    assert (redirect, handle.done) == ("/redirect", False)
    release.set()
    assert (await handle.result(), params) == (99, {})


@pytest.mark.covers("W14")
async def test_a_spawned_child_survives_its_parents_failure(shop, mail_server):
    """A mail in a spawned child is sent although the parent fails."""

    async def notify(ws):
        await ws.send_mail(to="ada@example.org", subject="Note", text="x")

    async def parent(ws):
        ws.spawn_in_new_workspace(notify)
        raise RuntimeError("parent")

    with pytest.raises(RuntimeError, match="parent"):
        await shop.run_in_new_workspace(parent)
    assert (await mail_server.mails())[0]["subject"] == "Note"


@pytest.mark.covers("W18", "W61")
async def test_each_call_is_a_root_of_its_own(app):
    """Each call gets a root workspace with an id of its own, also inside another one and inside a fork."""

    async def child(ws):
        inner = await ws.run_in_new_workspace(lambda ws: (ws.id, ws.root is ws, ws.parent))
        return ws.id, *inner

    async with app.workspace() as ws, ws.fork() as fork:
        child_id, inner_id, is_root, parent = await fork.run_in_new_workspace(child)
        assert len({ws.id, fork.id, child_id, inner_id}) == 4
        assert (is_root, parent) == (True, None)


@pytest.mark.covers("W19", "W26")
async def test_services_are_fresh_unless_they_are_the_apps(shop):
    """Services of a child are never the parent's objects unless they have scope app; the configuration is the same."""

    async def child(ws):
        return [await ws.require(name) for name in ("fresh", "shared", "each")], ws.config

    async with shop.workspace() as ws:
        mine = [await ws.require(name) for name in ("fresh", "shared", "each")]
        theirs, config = await ws.run_in_new_workspace(child)
        assert [a is b for a, b in zip(mine, theirs, strict=True)] == [False, True, False]
        assert (dict(config), dict(ws.config)) == ({"site": "News"}, {"site": "News"})


@pytest.mark.covers("W21")
async def test_services_are_closed_in_reverse(app):
    """Services are closed in the reverse order in which they were made, those that need others first."""
    log = []

    @app.service(scope="run")
    async def lower():
        yield "lower"
        log.append("lower")

    @app.service(scope="run")
    async def upper(ctx):
        yield await ctx.require("lower")
        log.append("upper")

    await app.run_in_new_workspace(lambda upper: None)
    assert log == ["upper", "lower"]


@pytest.mark.covers("W22")
async def test_every_closer_runs_and_every_failure_is_told(app):
    """A closer that fails stops no other; all failures are raised together."""
    log = []

    def failing(name):
        async def service():
            yield name
            log.append(name)
            raise RuntimeError(name)

        return service

    for name in ("one", "two"):
        app.service(scope="run", name=name)(failing(name))
    with pytest.raises(ExceptionGroup) as caught:
        await app.run_in_new_workspace(lambda one, two: None)
    assert sorted(log) == sorted(str(error) for error in caught.value.exceptions) == ["one", "two"]


@pytest.mark.covers("W23", "W98")
async def test_an_awaited_childs_error_is_itself(shop):
    """The error of an awaited child reaches the caller as itself, with its traceback; the caller goes on."""

    async def child(ws):
        raise KeyError("lost", 7)

    async with shop.workspace() as ws:
        mine = await ws.require("fresh")
        with pytest.raises(KeyError) as caught:
            await ws.run_in_new_workspace(child)
        assert caught.value.args == ("lost", 7)
        assert caught.traceback[-1].name == "child"
        assert await ws.require("fresh") is mine
        await ws.database.comments.insert(body="still here")


@pytest.mark.covers("W24", "W31")
async def test_a_spawned_childs_error_is_kept_and_reaches_nobody(shop, caplog):
    """The error of a spawned child never reaches its caller: it is logged, counted, and its handle has it."""

    async def child(ws):
        raise RuntimeError("lost in the background")

    async def request(ws):
        return ws.spawn_in_new_workspace(child)

    handle = await shop.run_in_new_workspace(request)
    with pytest.raises(RuntimeError, match="lost in the background"):
        await handle.result()
    assert shop.supervisor.failed == 1
    assert "lost in the background" in caplog.text


@pytest.mark.covers("W25", "W86")
async def test_closed_workspaces_leave_nothing_behind(shop):
    """After 10,000 workspaces none is left in memory, and none waits for the garbage collector."""
    seen = weakref.WeakSet()

    async def child(ws, fresh):
        seen.add(ws)
        seen.add(fresh)

    gc.disable()
    try:
        for _ in range(10_000):
            await shop.run_in_new_workspace(child)
        assert len(seen) == 0
    finally:
        gc.enable()


@pytest.mark.covers("W28")
async def test_a_child_loads_what_it_needs_by_id(shop, mail_server):
    """A child loads a row by the id that it was given; where there is none it returns quietly."""

    async def notify(ws, comment_id):
        comment = await ws.database.comments.where(id=comment_id).first()
        if comment is not None:
            await ws.send_mail(to="ada@example.org", subject="Comment", text=comment.body)

    async with shop.workspace() as ws:
        comment = await ws.database.comments.insert(body="Hello")
    await shop.run_in_new_workspace(notify, 999)
    await shop.run_in_new_workspace(notify, comment.id)
    (mail,) = await mail_server.mails()
    assert mail.get_content().strip() == "Hello"


@pytest.mark.covers("W32", "W101")
async def test_plain_values_are_passed_the_callers_identity_is_not(shop):
    """A child sees what it is given and what its closure holds; the caller's user, params and space are not in it."""
    outside = 42

    async def child(ws, user_id):
        return user_id, outside, ws.user, dict(ws.params), ws.space

    async with shop.workspace(user={"id": 7}, params={"id": 1}, space="acme") as ws:
        assert await ws.run_in_new_workspace(child, ws.user["id"]) == (7, 42, None, {}, None)


@pytest.mark.covers("W33", "W116")
async def test_a_child_sees_what_is_committed(shop):
    """What the caller has written is seen by a child, and what is written meanwhile by the next one."""

    async def count(ws):
        return await ws.database.comments.count()

    async with shop.workspace() as ws:
        for expected in (1, 2, 3):
            await ws.database.comments.insert(body="x")
            assert await ws.run_in_new_workspace(count) == expected


@pytest.mark.covers("W43", "W44", "W45")
async def test_a_handler_takes_its_values_before_it_hands_over(shop):
    """A handler takes its values from `params` and rows first and hands them over; a missing row ends it quietly."""
    from urllib.parse import urljoin

    seen = []

    async def child(ws, link, title):
        seen.append((link, title, dict(ws.params)))

    async def handler(ws):
        post = await ws.database.comments.where(id=ws.params["id"]).first()
        if post is None:
            return None
        await ws.run_in_new_workspace(child, urljoin(ws.params["_url"], f"/{post.body}"), post.body)
        return post.id

    async with shop.workspace() as ws:
        post = await ws.database.comments.insert(body="hello-world")
    async with shop.workspace(params={"id": 999, "_url": "https://example.org/x"}) as ws:
        assert await handler(ws) is None
    async with shop.workspace(params={"id": post.id, "_url": "https://example.org/x"}) as ws:
        assert await handler(ws) == post.id
    assert seen == [("https://example.org/hello-world", "hello-world", {})]


@pytest.mark.covers("W50")
async def test_results_come_in_the_order_of_the_input(app):
    """Children for many ids at once give their results in the order of the ids."""

    async def child(ws, user_id):
        return {"user_id": user_id, "processed": True}

    found = await asyncio.gather(*(app.run_in_new_workspace(child, n) for n in (3, 1, 2)))
    assert found == [{"user_id": n, "processed": True} for n in (3, 1, 2)]


@pytest.mark.covers("W58")
async def test_the_call_can_be_taken_out_and_used_later(app):
    """`run_in_new_workspace` taken out of a workspace works on after that workspace is closed."""
    async with app.workspace() as ws:
        run = ws.run_in_new_workspace
    assert await run(lambda ws: ws.closed) is False


@pytest.mark.covers("W62", "W63")
async def test_the_function_is_called_once_with_its_workspace(shop):
    """The function is called exactly once, with the workspace whose services it then gets."""
    calls = []

    async def child(ws, fresh):
        calls.append((current_workspace() is ws, await ws.require("fresh") is fresh))

    await shop.run_in_new_workspace(child)
    assert calls == [(True, True)]


@pytest.mark.covers("W64")
async def test_created_called_closing_closed(shop):
    """A workspace is created, called, closing and closed in this order; using it while it closes is refused."""
    log = []

    @shop.service(scope="run")
    async def observed(ctx):
        workspace = ctx.workspace
        log.append(("created", workspace.closed))
        yield "observed"
        log.append(("closing", workspace.closed))

    async def child(ws, observed):
        log.append(("called", ws.closed))
        return ws

    ws = await shop.run_in_new_workspace(child)
    log.append(("closed", ws.closed))
    assert log == [("created", False), ("called", False), ("closing", True), ("closed", True)]


@pytest.mark.covers("W66")
async def test_the_functions_error_wins(app):
    """When the function fails and closing fails too, its own error is raised, and says what else failed."""

    @app.service(scope="run")
    async def bad():
        yield 1
        raise RuntimeError("cannot close")

    async def child(bad):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        await app.run_in_new_workspace(child)
    assert "cannot close" in "".join(caught.value.__notes__)


@pytest.mark.covers("W94")
async def test_no_connection_is_held_by_a_workspace(shop):
    """A workspace holds no connection between its statements, nor after its end."""
    async with shop.workspace() as ws:
        await ws.database.comments.insert(body="x")
        pool = await ws.require("application_database")
        assert pool.leased == 0
    assert pool.leased == 0


@pytest.mark.covers("W99")
async def test_a_map_keeps_to_its_limit(app):
    """`map_in_workspaces` has at most `limit` workspaces open, handles every item, and keeps their order."""
    open_now, most = 0, 0

    async def child(ws, item):
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await ws.publish("tick")
        open_now -= 1
        return item * 2

    assert await app.map_in_workspaces(child, range(50), limit=10) == [n * 2 for n in range(50)]
    assert most == 10


@pytest.mark.covers("W100")
async def test_many_children_share_a_small_pool(make_app, database):
    """Far more children at once than the pool has connections all finish: none waits for ever."""
    async with make_app(database=database, settings=Settings(database_pool_size=2)) as app:
        async with app.workspace() as ws:
            await ws.database.run("create table notes (id integer primary key, n integer)")

        async def child(ws, n):
            await ws.database.notes.insert(n=n)
            return await ws.run_in_new_workspace(lambda ws: ws.database.notes.count())

        async with asyncio.timeout(20):
            counts = await asyncio.gather(*(app.run_in_new_workspace(child, n) for n in range(60)))
    assert max(counts) == 60


@pytest.mark.covers("W103")
async def test_arguments_are_passed_on(app):
    """Positional and keyword arguments reach the function as they are."""

    async def child(ws, a, *rest, b, **more):
        return a, rest, b, more

    assert await app.run_in_new_workspace(child, 1, 2, b=3, key="x") == (1, (2,), 3, {"key": "x"})


@pytest.mark.covers("W108")
async def test_cancelling_the_caller_cancels_the_child(shop):
    """Cancelling who awaits a child cancels the child; its clean-up completes, and the cancellation goes on."""
    began = asyncio.Event()

    async def child(fresh):
        began.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(shop.run_in_new_workspace(child))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert shop.log == ["fresh"]


@pytest.mark.covers("W109")
async def test_the_end_of_the_app_waits_for_spawned_children(make_app):
    """The end of the app waits for spawned children, cancels those that are late, and closes their workspaces."""
    log = []
    app = make_app(settings=Settings(close_timeout_seconds=0.05))

    @app.service(scope="run")
    async def fresh():
        yield 1
        log.append("closed")

    async def quick(ws, fresh):
        log.append("quick")

    async def late(ws, fresh):
        await asyncio.Event().wait()

    async with app:
        app.spawn_in_new_workspace(quick)
        app.spawn_in_new_workspace(late)
    assert log.count("closed") == 2
    assert "quick" in log
    with pytest.raises(PieceworkError) as caught:
        app.spawn_in_new_workspace(quick)
    assert caught.value.code in {"STOPPED", "CLOSED"}


@pytest.mark.covers("W110")
async def test_a_closed_workspace_refuses_by_name(shop):
    """Using a workspace after its end raises CLOSED with its id; so does its database."""
    async with shop.workspace() as ws:
        comments = ws.database.comments
    for use in (lambda: ws.require("fresh"), comments.all, lambda: ws.publish("x")):
        with pytest.raises(ClosedError, match=ws.id):
            await use()
    with pytest.raises(ClosedError, match=ws.id):
        _ = ws.database


@pytest.mark.covers("N24")
async def test_conditions_say_what_they_mean(shop):
    """In `where`, None is NULL and a list is any of its values; an empty one matches no row."""
    async with shop.workspace() as ws:
        comments = ws.database.comments
        for post_id in (1, 2, None):
            await comments.insert(body="x", post_id=post_id)
        assert await comments.where(post_id=None).count() == 1
        assert await comments.where(post_id=[1, 2]).count() == 2
        assert await comments.where(post_id=[]).count() == 0
        assert await comments.where(body="x", post_id=1).count() == 1


@pytest.mark.covers("W112")
async def test_a_circle_and_an_unknown_service_are_told(app):
    """A circle of services raises with its path; an unknown service with the nearest names."""

    @app.service(scope="run")
    async def first(ctx):
        return await ctx.require("second")

    @app.service(scope="run")
    async def second(ctx):
        return await ctx.require("first")

    async with app.workspace() as ws:
        with pytest.raises(CycleError, match="first -> second -> first"):
            await ws.require("first")
        with pytest.raises(NotFoundError, match="did you mean 'second'"):
            await ws.require("secnod")


@pytest.mark.covers("N25")
async def test_a_wider_scope_cannot_need_a_narrower_one(app):
    """A service of the app that asks for one of a run is refused with INVALID_SCOPE and both names."""

    @app.service(scope="run")
    def narrow():
        return 1

    @app.service(scope="app")
    async def wide(ctx):
        return await ctx.require("narrow")

    async with app.workspace() as ws:
        with pytest.raises(InvalidScopeError, match=r"narrow.*wide"):
            await ws.require("wide")


async def test_an_app_without_a_database_says_so(make_app):
    """Using the database of an app that has none tells how to give it one."""
    async with make_app() as app, app.workspace() as ws:
        with pytest.raises(Exception, match="PIECEWORK_DATABASE"):
            await ws.database.users.all()
