"""Promises about spaces: which have a worker, and how they stand."""

from __future__ import annotations

import asyncio

import pytest

from piecework import Settings
from piecework.errors import ClosedError, CrashedError, InvalidStateError, NotFoundError
from piecework.ids import new_id
from piecework.process import linux
from piecework.process.protocol import Init
from piecework.space.folds import decide_set_desired
from piecework.store.items import SetDesired
from piecework.store.verbs.pieces import set_desired

from .test_pieces import SETTINGS, add, first, line, make_kinds, runs  # noqa: F401 - fixtures

pytestmark = [
    pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds"),
    pytest.mark.engines("sqlite"),
]


async def pause(app, piece_id="p", space="acme"):
    """Lets no update of a piece follow."""
    item = SetDesired(space=space, piece_id=piece_id, desired="paused", reason=None, run_id=new_id())
    await app.store.run(set_desired, item, decide_set_desired, app.clock.now())


async def gone(app, space="acme"):
    """Waits until a space has no worker."""
    while (manager := app.spaces.manager(space)) and manager.controller:
        await app.spaces._room.wait()


@pytest.mark.covers("N470")
@pytest.mark.engines("sqlite", "postgres")
async def test_a_space_tells_how_it_stands(make_kinds):  # noqa: F811
    """Spaces that have a piece or a worker are told: how each stands, its worker, what it takes, and its limits."""
    async with make_kinds() as app:
        assert await app.pieces.spaces() == []
        await add(app, "plain", "p", "acme")
        await add(app, "plain", "p", "beta")
        await app.spaces.manager("beta").hibernate("a test wants it")
        acme, beta = await app.pieces.spaces()
        assert (acme.space, acme.observed, acme.pid) == ("acme", "ready", app.spaces.manager("acme").controller.pid)
        assert acme.memory_bytes > 1_000_000
        assert set(acme.limits) >= {"memory", "cpu", "processes", "files", "wall", "folder", "filesystem", "syscalls"}
        assert beta == await app.pieces.space("beta")
        assert (beta.observed, beta.pid, beta.memory_bytes, beta.restarts) == ("idle", None, None, 0)
        with pytest.raises(NotFoundError, match="acme"):
            await app.pieces.space("acmee")
    with pytest.raises(ClosedError):
        await app.pieces.spaces()


@pytest.mark.covers("N471")
async def test_a_client_sees_the_spaces_of_its_node(make_kinds, app_beside):  # noqa: F811
    """A client is told of the spaces of its node, as its node is."""
    async with make_kinds() as app:
        await add(app, "plain")
        async with app_beside.open(role="client"):
            assert await app_beside.pieces.spaces() == await app.pieces.spaces()
            assert (await app_beside.pieces.space("acme")).pid == app.spaces.manager("acme").controller.pid
            assert (await app_beside.pieces.resume_space("acme")).observed == "ready"
            with pytest.raises(NotFoundError, match="acme"):
                await app_beside.pieces.space("acmee")


@pytest.mark.covers("N521")
@pytest.mark.engines("sqlite", "postgres")
async def test_a_client_is_told_of_a_broken_space(make_kinds, app_beside):  # noqa: F811
    """A client sees why a space of its node is broken, and does not wait in vain for an update there."""
    settings = Settings(space_grace_seconds=0.2, crash_loop_limit=1, heartbeat_seconds=0.1)
    async with make_kinds(settings=settings) as app, app_beside.open(role="client"):
        supply = app.spaces._supply
        make_init, supply._make_init = supply._make_init, lambda space: Init(space=space, settings={"no_such_thing": 1})
        await app.pieces.register(space="acme", piece_id="p", integration="plain")
        with pytest.raises(CrashedError, match="no_such_thing"):
            await app_beside.pieces.run_now("acme", "p", wait=True)
        while (space := await app_beside.pieces.space("acme")).observed != "broken":
            await asyncio.sleep(0.05)
        assert (space.pid, "no_such_thing" in space.broken_reason, space.restarts > 0) == (None, True, True)
        supply._make_init = make_init
        assert (await app_beside.pieces.run_now("acme", "p", wait=True)).outcome == "success"
        worker = app.spaces.manager("acme").controller.pid
        while (space := await app_beside.pieces.space("acme")).observed != "ready":
            await asyncio.sleep(0.05)
        assert (space.pid, space.memory_bytes > 1_000_000, space.broken_reason) == (worker, True, None)
        assert space.limits == (await app.pieces.space("acme")).limits


@pytest.fixture
def app_beside(store):
    """Another app over the same store."""
    from piecework import App

    return App("beside", store=store, database="sqlite://")


@pytest.mark.covers("P1")
async def test_an_app_is_opened_once(make_kinds):  # noqa: F811
    """Opening an app a second time is refused, and changes nothing: one worker for all pieces of a space."""
    async with make_kinds() as app:
        one = await add(app, "plain", "one")
        with pytest.raises(InvalidStateError):
            await app.__aenter__()
        two = await add(app, "plain", "two")
        assert one.result["process"] == two.result["process"]
        assert [manager.space for manager in app.spaces.managers()] == ["acme"]


@pytest.mark.covers("P2", "P3", "N472")
async def test_a_space_without_a_piece_to_update_has_no_worker(make_kinds, line):  # noqa: F811
    """When no piece of a space is to be updated any more its worker goes, and after a start it gets none."""
    async with make_kinds() as app:
        await app.pieces.register(space="acme", piece_id="p", integration="held", config=line.config)
        await line.has_begun()
        controller = app.spaces.manager("acme").controller
        worker = controller.pid
        await pause(app)
        await line.let_go()
        await first(app)
        assert (await controller.dead(), runs(worker)) == (0, False)
        await add(app, "gives-up", "q")
        await gone(app)
    async with make_kinds() as app:
        await add(app, "plain", "p", "beta")
        acme, beta = await app.pieces.spaces()
        assert (acme.observed, acme.pid, beta.observed) == ("idle", None, "ready")
        assert [manager.space for manager in app.spaces.managers()] == ["beta"]


@pytest.mark.covers("P5")
async def test_nothing_begins_after_the_end(make_kinds):  # noqa: F811
    """After the app has closed a registration is refused, and what came due starts no worker."""
    async with make_kinds() as app:
        spaces, pieces = app.spaces, app.pieces
    with pytest.raises(ClosedError):
        await pieces.register(space="acme", piece_id="p", integration="plain")
    assert spaces.managers() == []


@pytest.mark.covers("P16")
async def test_the_end_waits_for_what_is_under_way(make_kinds, line):  # noqa: F811
    """The end waits for an update that is under way; then its worker is closed once, in order."""
    settings = Settings(space_grace_seconds=5, close_timeout_seconds=20)
    async with make_kinds(settings=settings) as app:
        await app.pieces.register(space="acme", piece_id="p", integration="held", config=line.config)
        await line.has_begun()
        controller = app.spaces.manager("acme").controller
        await line.let_go()
    assert await controller.dead() == 0
    async with make_kinds() as app:
        assert (await app.pieces.get("acme", "p")).status == "Success"


@pytest.mark.covers("N473")
@pytest.mark.engines("sqlite", "postgres")
async def test_a_broken_space_charges_no_piece(make_kinds):  # noqa: F811
    """When a space's workers cannot start its pieces are not charged: updates wait, and go on when it is resumed."""
    settings = Settings(space_grace_seconds=0.2, crash_loop_limit=1)
    async with make_kinds(settings=settings) as app:
        supply = app.spaces._supply
        make_init, supply._make_init = supply._make_init, lambda space: Init(space=space, settings={"no_such_thing": 1})
        await app.pieces.register(space="acme", piece_id="p", integration="plain")
        while not ((acme := app.spaces.manager("acme")) and acme.broken):
            await app.spaces._room.wait()
        space = await app.pieces.space("acme")
        assert (space.pid, "no_such_thing" in space.broken_reason) == (None, True)
        piece, update = await app.pieces.get("acme", "p"), (await app.pieces.runs("acme", "p"))[0]
        assert (piece.consecutive_failures, piece.status, update.ended_at) == (0, "Initializing", None)
        with pytest.raises(CrashedError, match="no_such_thing"):
            await app.pieces.run_now("acme", "p", wait=True)
        supply._make_init = make_init
        await app.pieces.resume_space("acme")
        await app.runtime.wait(update.run_id, timeout_seconds=15)
        assert (await app.pieces.get("acme", "p")).status == "Success"
        assert (await app.pieces.space("acme")).observed == "ready"
