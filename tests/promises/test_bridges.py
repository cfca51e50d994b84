# Annotations are evaluated as they stand: FastAPI, svcs and dishka read them, and the classes of a test are local.
import asyncio
import gc
import re
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import dishka
import httpx2
import pytest
import svcs
from fastapi import Depends, FastAPI, HTTPException, WebSocket
from fastapi.testclient import TestClient

from piecework import App, Workspace
from piecework.bridges.dishka import dishka_parent
from piecework.bridges.fastapi import attach, piecework_service, piecework_workspace
from piecework.bridges.svcs import svcs_parent
from piecework.container.container import Container
from piecework.errors import ClosedError, InvalidStateError, NotFoundError, ValidationError

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "bridges.md"
LIBRARIES = ("dishka", "fastapi", "svcs")


class Ledger:
    """A service of the request."""


class Prices:
    """A service of the app."""


class Mailer:
    """What another library has."""


class Mailers:
    """What nobody has."""


class Letter:
    """What another library has too; needs a `Mailer`."""

    def __init__(self, mailer: Mailer) -> None:
        self.mailer = mailer


InLedger = Annotated[Ledger, Depends(piecework_service(Ledger))]
InWorkspace = Annotated[Workspace, Depends(piecework_workspace)]


# -- FastAPI -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def log():
    """What happened, in order."""
    return []


@pytest.fixture
def app(tmp_path, log):
    """An app with a service of the app and one of the request that says when it is closed; not open yet."""
    app = App("shop", store=f"sqlite:///{tmp_path / 'state.db'}")

    @app.service(scope="app")
    def prices() -> Prices:
        return Prices()

    @app.service(scope="run")
    async def ledger():
        yield Ledger()
        log.append("closed")

    @app.service(scope="run", provides=Ledger)
    def typed_ledger(ledger):
        return ledger

    return app


@pytest.fixture
def api(app):
    """A FastAPI application whose lifespan opens and closes the app."""

    @asynccontextmanager
    async def lifespan(api):
        async with app:
            yield

    api = FastAPI(lifespan=lifespan)
    attach(api, app)
    return api


@asynccontextmanager
async def asking(api):
    """A client of an application whose lifespan is the test's business."""
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=api), base_url="http://shop") as client:
        yield client


@pytest.mark.covers("N74")
async def test_a_request_has_one_workspace_and_two_requests_have_two(app, api):
    """All dependencies of a request share one fresh workspace; the next request has another; the app's are shared."""
    seen = []

    @api.get("/")
    async def look(
        ws: InWorkspace,
        by_type: InLedger,
        by_name: Annotated[Ledger, Depends(piecework_service("ledger"))],
        prices: Annotated[Prices, Depends(piecework_service(Prices))],
    ):
        seen.append((ws.id, await ws.require("ledger"), by_type, by_name, prices))

    async with app, asking(api) as client:
        await client.get("/")
        await client.get("/")
    first, second = seen
    assert first[1] is first[2] is first[3]
    assert first[0] != second[0]
    assert first[2] is not second[2]
    assert isinstance(first[4], Prices)
    assert first[4] is second[4]


@pytest.mark.covers("N74")
async def test_a_workspace_is_closed_after_the_response(app, api, log):
    """The response is sent whole before the workspace of its request is closed."""

    @api.get("/")
    async def look(ledger: InLedger):
        log.append("handled")

    async def watched(scope, receive, send):
        async def sending(message):
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                log.append("sent")

        await api(scope, receive, sending)

    async with app, asking(watched) as client:
        await client.get("/")
        assert log == ["handled", "sent", "closed"]


@pytest.mark.covers("N74")
async def test_a_synchronous_handler_gets_services_too(app, api, log):
    """A plain function that FastAPI runs in a thread gets services like any other, closed after it."""

    @api.get("/")
    def look(ledger: InLedger, ws: InWorkspace):
        return ws.id if isinstance(ledger, Ledger) and not log else None

    async with app, asking(api) as client:
        assert (await client.get("/")).json()
    assert log == ["closed"]


def closing_fails(app):
    @app.service(scope="run")
    def stubborn():
        yield "stubborn"
        raise OSError("the drawer is stuck")

    return Depends(piecework_service("stubborn"))


@pytest.mark.covers("N74")
async def test_the_error_of_a_handler_wins_over_closing(app, api, log):
    """The handler's error is what arrives, with what failed while closing as a note; all else is closed."""
    stubborn = closing_fails(app)

    @api.get("/")
    async def fail(stubborn: Annotated[str, stubborn], ledger: InLedger):
        raise LookupError("no such drawer")

    async with app, asking(api) as client:
        with pytest.raises(LookupError, match="no such drawer") as caught:
            await client.get("/")
    assert "the drawer is stuck" in "".join(caught.value.__notes__)
    assert log == ["closed"]


@pytest.mark.covers("N74")
async def test_a_failure_of_closing_is_not_lost(app, api):
    """When the handler succeeded and closing fails, the server sees it, though the answer has been given."""
    stubborn = closing_fails(app)

    @api.get("/")
    async def look(stubborn: Annotated[str, stubborn]):
        return stubborn

    async with app, asking(api) as client:
        with pytest.raises(ExceptionGroup, match="close") as caught:
            await client.get("/")
    assert str(caught.value.exceptions[0]) == "the drawer is stuck"


@pytest.mark.covers("N74")
async def test_an_answer_that_is_raised_stays_an_answer(app, api, log):
    """A handler's HTTPException is the answer that it says, and the workspace is closed."""

    @api.get("/")
    async def fail(ledger: InLedger):
        raise HTTPException(404, "no such order")

    async with app, asking(api) as client:
        answer = await client.get("/")
    assert (answer.status_code, answer.json()) == (404, {"detail": "no such order"})
    assert log == ["closed"]


@pytest.mark.covers("N74")
def test_the_lifespan_opens_the_app_and_mounted_applications_find_it(api):
    """Inside the lifespan the app is open, for the application that it was attached to and those mounted in it."""
    inner, innermost = FastAPI(), FastAPI()
    api.mount("/inner", inner)
    inner.mount("/innermost", innermost)
    for one in (api, inner, innermost):

        @one.get("/look")
        async def look(ws: InWorkspace):
            return ws.host.name

    with TestClient(api) as client:
        assert [client.get(f"{path}/look").json() for path in ("", "/inner", "/inner/innermost")] == ["shop"] * 3
    with pytest.raises(ClosedError, match="open it in the lifespan"):
        TestClient(api).get("/look")


@pytest.mark.covers("N74")
async def test_a_mounted_application_may_have_an_app_of_its_own(app, api, tmp_path):
    """The App that was attached to the mounted application itself is nearer than the outer one."""
    inner = FastAPI()
    api.mount("/inner", inner)

    @inner.get("/look")
    async def look(ws: InWorkspace):
        return ws.host.name

    other = App("other", store=f"sqlite:///{tmp_path / 'other.db'}")
    attach(inner, other)
    async with app, other, asking(api) as client:
        assert (await client.get("/inner/look")).json() == "other"


@pytest.mark.covers("N74")
def test_a_websocket_has_a_workspace(api, log):
    """A WebSocket has one workspace for as long as it is open."""

    @api.websocket("/talk")
    async def talk(socket: WebSocket, ledger: InLedger, ws: InWorkspace):
        await socket.accept()
        await socket.send_json([ws.id, await ws.require(Ledger) is ledger, list(log)])
        await socket.close()

    with TestClient(api) as client:
        with client.websocket_connect("/talk") as socket:
            first = socket.receive_json()
        with client.websocket_connect("/talk") as socket:
            second = socket.receive_json()
    assert first[1:] == [True, []]
    assert second[1:] == [True, ["closed"]]
    assert first[0] != second[0]


@pytest.mark.covers("N74")
async def test_services_are_replaced_by_fastapis_overrides(app, api, log):
    """An override of FastAPI's replaces a service by its key, and the workspace for all services."""

    @api.get("/")
    async def look(ledger: InLedger, ws: InWorkspace):
        return [type(ledger).__name__, ws.space]

    async def tenants():
        async with app.workspace(space="north") as ws:
            yield ws

    async with app, asking(api) as client:
        assert (await client.get("/")).json() == ["Ledger", None]
        api.dependency_overrides[piecework_workspace] = tenants
        assert (await client.get("/")).json() == ["Ledger", "north"]
        api.dependency_overrides[piecework_service(Ledger)] = Prices
        assert (await client.get("/")).json() == ["Prices", "north"]
        api.dependency_overrides.clear()
        assert (await client.get("/")).json() == ["Ledger", None]


@pytest.mark.covers("N74")
async def test_what_is_missing_is_told(app, api):
    """No App, an App that is not open, and a service that there is not: each is said, with what to do."""
    bare = FastAPI()
    for one in (bare, api):

        @one.get("/look")
        async def look(ws: InWorkspace, ledger: Annotated[Ledger, Depends(piecework_service("legder"))]):
            pass

    async with asking(bare) as client:
        with pytest.raises(InvalidStateError, match=r"serves /look: call piecework\.bridges\.fastapi\.attach"):
            await client.get("/look")
    async with asking(api) as client:
        with pytest.raises(ClosedError, match="app 'shop' is not open: open it in the lifespan"):
            await client.get("/look")
        async with app:
            with pytest.raises(NotFoundError, match="did you mean 'ledger'"):
                await client.get("/look")


# -- svcs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def registry():
    """A registry of svcs, closed after the test."""
    async with svcs.Registry() as registry:
        yield registry


@pytest.fixture
def shop():
    """A Piecework container."""
    return Container("shop")


@pytest.mark.covers("N75")
async def test_svcs_services_are_found_by_type_and_by_name(registry, shop):
    """What svcs has is found by type and by name, made once, and fills the parameters of Piecework's factories."""
    registry.register_factory(Mailer, Mailer)
    async with svcs_parent(registry) as parent, shop:
        shop.extend(parent)
        shop.register("letter", Letter)
        mailer = await shop.require(Mailer)
        assert isinstance(mailer, Mailer)
        assert (await shop.require("letter")).mailer is mailer
        assert shop.peek(Mailer) is mailer
        assert await shop.require("Mailer") is mailer
        assert await parent.require(Mailer) is mailer


@pytest.mark.covers("N75")
async def test_svcs_factories_of_every_kind_are_opened_and_closed(registry, log):
    """Plain and asynchronous factories, generators and values of svcs: all are given, and closed last begun first."""

    async def asynchronous(svcs_container: svcs.Container):
        yield Letter(await svcs_container.aget(Mailer))
        log.append("letter closed")

    def plain():
        yield Mailer()
        log.append("mailer closed")

    async def awaited():
        return Prices()

    registry.register_factory(Letter, asynchronous)
    registry.register_factory(Mailer, plain)
    registry.register_factory(Prices, awaited)
    registry.register_value(int, 7)
    async with svcs_parent(registry) as parent:
        mailer = await parent.require(Mailer)
        assert (await parent.require(Letter)).mailer is mailer
        assert isinstance(await parent.require(Prices), Prices)
        assert await parent.require(int) == 7
        assert log == []
    assert log == ["letter closed", "mailer closed"]


@pytest.mark.covers("N75")
async def test_a_clean_up_of_svcs_that_fails_is_logged_by_svcs(registry, log, caplog):
    """A clean-up that fails stops no other; svcs logs it under its own name."""

    def failing():
        yield Mailer()
        raise OSError("the post office is closed")

    def mended():
        yield Prices()
        log.append("closed")

    registry.register_factory(Prices, mended)
    registry.register_factory(Mailer, failing)
    async with svcs_parent(registry) as parent:
        await parent.require(Prices)
        await parent.require(Mailer)
    assert log == ["closed"]
    assert [record.name for record in caplog.records if record.exc_info] == ["svcs"]


@pytest.mark.covers("N75")
async def test_what_was_built_from_svcs_is_closed_before_it(registry, shop, log):
    """A container that looks in the parent is closed first, so that its services still have what they need."""

    def mailer():
        yield Mailer()
        log.append("mailer closed")

    async def letter(mailer: Mailer):
        yield Letter(mailer)
        log.append("letter closed")

    registry.register_factory(Mailer, mailer)
    async with svcs_parent(registry) as parent, shop:
        shop.extend(parent)
        shop.register("letter", letter)
        await shop.require("letter")
    assert log == ["letter closed", "mailer closed"]


@pytest.mark.covers("N75")
async def test_an_unknown_type_is_not_found_until_svcs_has_it(registry, shop):
    """A type that svcs does not know is NOT_FOUND, with near names; registered there later, it is found."""

    async def fill(post: Mailers):
        return post

    registry.register_factory(Mailer, Mailer)
    async with svcs_parent(registry) as parent, shop:
        shop.extend(parent)
        for _ in range(2):
            with pytest.raises(NotFoundError, match="no service 'Mailers': did you mean 'Mailer'"):
                await shop.require(Mailers)
        shop.register("filled", fill)
        with pytest.raises(NotFoundError, match="post"):
            await shop.require("filled")
        registry.register_factory(Mailers, Mailers)
        assert isinstance(await shop.require("filled"), Mailers)
        assert isinstance(await shop.require(Mailers), Mailers)


@pytest.mark.covers("N75")
async def test_two_types_of_one_name_are_found_by_their_types_alone(registry):
    """A name that two types of svcs have names neither of them."""
    mine, theirs = (type("Mailer", (), {"__module__": module}) for module in ("mine", "theirs"))
    registry.register_factory(mine, mine)
    registry.register_factory(theirs, theirs)
    async with svcs_parent(registry) as parent:
        assert type(await parent.require(mine)) is mine
        assert type(await parent.require("theirs.Mailer")) is theirs
        with pytest.raises(NotFoundError, match=r"mine\.Mailer.*theirs\.Mailer"):
            await parent.require("Mailer")


@pytest.mark.covers("N75")
async def test_the_error_of_a_svcs_factory_arrives_as_itself(registry, shop):
    """A factory's own error arrives, and the next ask tries again; so does what svcs says of a type it lacks."""
    failures = [OSError("no post office")]

    async def mailer():
        if failures:
            raise failures.pop()
        return Mailer()

    registry.register_factory(Mailer, mailer)
    registry.register_factory(Letter, lambda svcs_container: svcs_container.get(str))
    async with svcs_parent(registry) as parent, shop:
        shop.extend(parent)
        with pytest.raises(OSError, match="no post office"):
            await shop.require(Mailer)
        assert isinstance(await shop.require(Mailer), Mailer)
        with pytest.raises(svcs.exceptions.ServiceNotFoundError):
            await shop.require(Letter)


@pytest.mark.covers("N75")
async def test_a_svcs_service_is_made_once_though_many_ask(registry):
    """One that asks for a service and one whose factory needs it get the same instance, also at the same time."""
    asked, go = asyncio.Event(), asyncio.Event()
    made = []

    async def mailer():
        made.append(mailer)
        asked.set()
        await go.wait()
        return Mailer()

    async def letter(svcs_container: svcs.Container):
        return Letter(await svcs_container.aget(Mailer))

    registry.register_factory(Mailer, mailer)
    registry.register_factory(Letter, letter)
    async with svcs_parent(registry) as parent, asyncio.TaskGroup() as group:
        asks = [group.create_task(parent.require(kind)) for kind in (Letter, Mailer, Letter)]
        await asked.wait()
        await asyncio.sleep(0)
        go.set()
        letter, mailer, again = await asyncio.gather(*asks)
    assert letter.mailer is mailer
    assert again is letter
    assert len(made) == 1


@pytest.mark.covers("N75")
async def test_a_svcs_factory_may_ask_piecework(registry, shop):
    """A factory of svcs that asks a Piecework container, which asks svcs in turn, does not wait for itself."""

    async def letter():
        return await shop.require("letter")

    registry.register_factory(Letter, letter)
    registry.register_factory(Mailer, Mailer)
    async with svcs_parent(registry) as parent, shop:
        shop.extend(parent)
        shop.register("letter", lambda mailer: Letter(mailer))  # noqa: PLW0108 - by its name, which Letter annotates
        shop.register("mailer", lambda ctx: ctx.require(Mailer))
        found = await shop.require(Letter)
        assert found.mailer is await shop.require(Mailer)


@pytest.mark.covers("N75")
async def test_the_svcs_container_can_be_had_and_is_closed_with_the_parent(registry, log):
    """The one svcs container is made at the first use, there for health checks, and closed with the parent."""
    registry.register_factory(Mailer, Mailer, ping=log.append)
    async with svcs_parent(registry, name="post") as parent:
        assert parent.peek(svcs.Container) is None
        mailer = await parent.require(Mailer)
        (ping,) = (await parent.require(svcs.Container)).get_pings()
        await ping.aping()
    assert log == [mailer]
    with pytest.raises(ClosedError, match="post"):
        await parent.require(Mailer)
    gc.collect()  # svcs warns of a container that was dropped with clean-ups left, and warnings are errors


@pytest.mark.covers("N75")
async def test_all_of_svcs_can_be_made_anew(registry, shop, log):
    """Invalidating the svcs container closes all that it made, and what was built from it; the next ask begins anew."""

    def mailer():
        yield Mailer()
        log.append("mailer closed")

    async def letter(mailer: Mailer):
        yield Letter(mailer)
        log.append("letter closed")

    registry.register_factory(Mailer, mailer)
    async with svcs_parent(registry) as parent, shop:
        shop.extend(parent)
        shop.register("letter", letter)
        before = await shop.require("letter")
        await parent.invalidate(svcs.Container)
        assert log == ["letter closed", "mailer closed"]
        after = await shop.require("letter")
        assert after.mailer is await shop.require(Mailer) is not before.mailer


@pytest.mark.covers("N75")
async def test_a_foreign_service_can_be_overridden(registry, shop):
    """An override by type or by name holds for both, in the container that has it, and ends."""
    registry.register_factory(Mailer, Mailer)
    async with svcs_parent(registry) as parent, shop:
        shop.extend(parent)
        mailer = await shop.require(Mailer)
        for container, key in ((shop, Mailer), (shop, "Mailer"), (parent, Mailer), (parent, "Mailer")):
            restore = container.override(key, "fake")
            assert [await shop.require(Mailer), await shop.require("Mailer")] == ["fake", "fake"]
            restore()
            assert await shop.require(Mailer) is mailer


@pytest.mark.covers("N75")
async def test_workspaces_get_what_svcs_has(registry, app):
    """A workspace of an App whose container looks in the parent gets one instance, and each workspace the same."""
    registry.register_factory(Mailer, Mailer)
    async with svcs_parent(registry) as parent, app:
        app.container.extend(parent)
        async with app.workspace() as one, app.workspace() as two:
            assert await one.require(Mailer) is await two.require(Mailer)


# -- dishka ------------------------------------------------------------------------------------------------------------


def provider_of(*kinds, scope=dishka.Scope.APP, **options):
    """A provider of classes."""
    provider = dishka.Provider(scope=scope, **options)
    for kind in kinds:
        provider.provide(kind)
    return provider


@pytest.mark.covers("N76")
async def test_dishka_services_are_found_by_type_and_by_name(shop):
    """What dishka gives is found by type and by name, is dishka's own instance, and fills parameters."""
    given = dishka.make_async_container(provider_of(Mailer, Letter))
    async with dishka_parent(given) as parent, shop:
        shop.extend(parent)
        shop.register("wrapped", lambda ctx: ctx.require(Letter))
        letter = await shop.require(Letter)
        assert letter is await given.get(Letter) is await shop.require("Letter") is await shop.require("wrapped")
        assert letter.mailer is await shop.require(Mailer)
        assert shop.peek(Letter) is letter
    await given.close()


@pytest.mark.covers("N76")
async def test_the_dishka_container_stays_its_owners(log):
    """Disposing the parent closes nothing of dishka's; its owner closes it."""

    async def mailer() -> Mailer:
        yield Mailer()
        log.append("mailer closed")

    provider = dishka.Provider(scope=dishka.Scope.APP)
    provider.provide(mailer, provides=Mailer)
    given = dishka.make_async_container(provider)
    async with dishka_parent(given) as parent:
        mailer = await parent.require(Mailer)
    assert log == []
    assert await given.get(Mailer) is mailer
    await given.close()
    assert log == ["mailer closed"]


@pytest.mark.covers("N76")
async def test_the_scope_of_the_dishka_container_counts(shop):
    """Of a REQUEST container one instance for that request, the APP's from above; an APP one has none of REQUEST."""
    given = dishka.make_async_container(provider_of(Mailer), provider_of(Letter, scope=dishka.Scope.REQUEST))
    async with dishka_parent(given) as parent, shop:
        shop.extend(parent)
        mailer = await shop.require(Mailer)
        with pytest.raises(NotFoundError, match="Letter"):
            await shop.require(Letter)
    letters = []
    for _ in range(2):
        async with given() as request, dishka_parent(request) as parent:
            letters.append(await parent.require(Letter))
            assert await parent.require(Letter) is letters[-1] is await request.get(Letter)
            assert await parent.require(Mailer) is mailer
    assert letters[0] is not letters[1]
    await given.close()


@pytest.mark.covers("N76")
async def test_what_dishka_makes_anew_is_made_anew(shop):
    """A type that dishka keeps no instance of is another one at each ask."""
    provider = dishka.Provider(scope=dishka.Scope.APP)
    provider.provide(Mailer, cache=False)
    given = dishka.make_async_container(provider)
    async with dishka_parent(given) as parent, shop:
        shop.extend(parent)
        assert await shop.require(Mailer) is not await shop.require(Mailer)
    await given.close()


@pytest.mark.covers("N76")
async def test_an_unknown_type_of_dishka_is_not_found(shop):
    """A type that dishka cannot give is NOT_FOUND, with near names."""

    given = dishka.make_async_container(provider_of(Mailer))
    async with dishka_parent(given) as parent, shop:
        shop.extend(parent)
        with pytest.raises(NotFoundError, match="no service 'Mailers': did you mean 'Mailer'"):
            await shop.require(Mailers)
    await given.close()


@pytest.mark.covers("N76")
async def test_the_error_of_a_dishka_factory_arrives_as_itself():
    """A factory's own error arrives, and the next ask tries again."""
    failures = [OSError("no post office")]

    async def mailer() -> Mailer:
        if failures:
            raise failures.pop()
        return Mailer()

    provider = dishka.Provider(scope=dishka.Scope.APP)
    provider.provide(mailer)
    given = dishka.make_async_container(provider)
    async with dishka_parent(given) as parent:
        with pytest.raises(OSError, match="no post office"):
            await parent.require(Mailer)
        assert await parent.require(Mailer) is await given.get(Mailer)
    await given.close()


@pytest.mark.covers("N76")
async def test_a_component_of_dishka_can_be_asked():
    """A parent of a component gives that component's services and no other's."""
    post, bank = provider_of(Mailer, component="post"), provider_of(Prices, component="bank")
    given = dishka.make_async_container(post, bank)
    async with dishka_parent(given, component="post") as parent:
        assert await parent.require(Mailer) is await given.get(Mailer, component="post")
        assert not parent.has(Prices)
    await given.close()


@pytest.mark.covers("N76")
async def test_a_synchronous_dishka_container_works_too():
    """A synchronous container is asked in place: what it gives needs no waiting, not even in a workspace."""
    given = dishka.make_container(provider_of(Mailer))
    async with dishka_parent(given) as parent:
        assert parent.require_now(Mailer) is given.get(Mailer) is await parent.require(Mailer)
    given.close()


@pytest.mark.covers("N76")
def test_what_is_no_dishka_container_is_refused():
    """Something else than a dishka container, as a provider, is refused at once."""
    with pytest.raises(ValidationError, match="make_async_container"):
        dishka_parent(provider_of(Mailer))


# -- all of them -------------------------------------------------------------------------------------------------------


def run(program, folder):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=25,
        check=False,
    )


@pytest.mark.covers("N74", "N75", "N76")
@pytest.mark.parametrize(("library", "called"), [("fastapi", "FastAPI"), ("svcs", "svcs"), ("dishka", "dishka")])
def test_a_bridge_says_what_to_install(library, called, tmp_path):
    """Without its library a bridge cannot be imported, and the error names the extra to install."""
    program = f"""
import sys
sys.modules[{library!r}] = None
try:
    import piecework.bridges.{library}
except ImportError as error:
    print(error.code, error.extra, error)
"""
    done = run(program, tmp_path)
    told = f"MISSING_EXTRA {library} the bridge to {called} needs an optional part: pip install 'piecework[{library}]'"
    assert (done.stdout, done.stderr) == (f"{told}\n", "")


@pytest.mark.covers("N74", "N75", "N76")
def test_nothing_else_imports_a_bridge(tmp_path):
    """An App and a container load neither a bridge nor its library."""
    program = f"""
import sys
import piecework.app, piecework.cli.program, piecework.container.container
print([name for name in sys.modules if name.startswith(("piecework.bridges", *{LIBRARIES}))])
"""
    done = run(program, tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.covers("N74", "N75", "N76")
def test_the_guide_runs_as_it_is_written(tmp_path):
    """The programs of docs/guides/bridges.md run, one after the other, and print what the guide says."""
    text = GUIDE.read_text("utf-8")
    program, told = (
        "".join(re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)) for kind in ("python", "text")
    )
    done = run(program, tmp_path)
    assert (done.stdout, done.stderr) == (told, "")
