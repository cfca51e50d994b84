"""When pieces run: by intervals, schedules and events, over restarts, and whatever the clock does."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from piecework import App, Settings
from piecework.clock import SECOND
from piecework.errors import NotFoundError, ValidationError
from piecework.ids import new_id
from piecework.process import linux
from piecework.space.folds import decide_set_desired
from piecework.store.items import SetDesired
from piecework.store.verbs.pieces import set_desired

from .apps.times import app as times
from .test_pieces import Line

pytestmark = pytest.mark.skipif(not linux.can_run_workers(), reason="workers need pidfds")
SETTINGS = Settings(space_grace_seconds=0.2, close_timeout_seconds=2)
DAY = timedelta(days=1)
ONE = pytest.mark.engines("sqlite")
"""Both engines keep these promises in the contract; the way from there to a worker is the same."""


@pytest.fixture
def make_times(make_app, store, database):
    """The app of `apps/times`, over the test's own files."""

    def make(**options):
        times.configure(store=store, database=database, settings=SETTINGS)
        times.clock = options.get("clock", before)
        return times

    before = times.clock
    yield make
    times.clock = before


@pytest.fixture
async def app(make_times, clock):
    """The app of `apps/times`, open, under the test's clock: the first of January 2026, midnight in UTC."""
    async with make_times(clock=clock) as app:
        yield app


@pytest.fixture
async def line():
    """A line of the test's own."""
    line = Line()
    await line.open()
    yield line
    await line.close()


async def add(app, integration, piece_id="p", space="acme", **how):
    """Registers a piece and awaits its first update."""
    await app.pieces.register(space=space, piece_id=piece_id, integration=integration, **how)
    return await ended(app, piece_id, space)


async def ended(app, piece_id="p", space="acme", place=-1):
    """One of a piece's updates, the first unless another is asked for, when it has ended."""
    update = (await app.pieces.runs(space, piece_id))[place]
    _ = (await app.runtime.wait(update.run_id, timeout_seconds=25)).ok
    return await app.runtime.get(update.run_id)


async def let_pass(app, clock, seconds, piece_id="p", space="acme"):
    """Lets time go on until the piece's next update has ended; answers it."""
    update = (await app.pieces.runs(space, piece_id))[0]
    await clock.until_asleep()
    await clock.advance(seconds)
    await app.runtime.wait(update.run_id, timeout_seconds=25)
    return await app.runtime.get(update.run_id)


async def desire(app, desired, piece_id="p"):
    """Pauses or enables a piece."""
    item = SetDesired(space="acme", piece_id=piece_id, desired=desired, reason=None, run_id=new_id())
    await app.store.run(set_desired, item, decide_set_desired, app.clock.now())


def moment(clock):
    """The test's time."""
    return datetime.fromtimestamp(clock.now() / SECOND, UTC)


@pytest.mark.covers("N400")
@ONE
async def test_a_piece_with_a_schedule(app, clock):
    """A piece with a schedule is updated at once when it is new, then at its times, in its time zone."""
    first = await add(app, "daily")
    piece = await app.pieces.get("acme", "p")
    assert (first.trigger_id, piece.schedule) == ("registered", "0 8 * * * Europe/Berlin")
    assert piece.next_run_at == datetime(2026, 1, 1, 7, tzinfo=UTC)
    update = await let_pass(app, clock, 7 * 3600)
    assert (update.trigger_id, update.result["count"]) == ("cron", 2)
    assert (await app.pieces.get("acme", "p")).next_run_at == datetime(2026, 1, 2, 7, tzinfo=UTC)


@pytest.mark.covers("N400")
@ONE
async def test_a_piece_has_times_of_its_own(app):
    """A registration may give an interval or a schedule of its own; the next one gives the integration's back."""
    await add(app, "daily", every_seconds=30)
    assert (await app.pieces.get("acme", "p")).schedule == "every 30 s"
    await add(app, "waits", "q", schedule=["0 9 * * *", "@hourly"])
    assert (await app.pieces.get("acme", "q")).schedule == "0 9 * * *, @hourly, on feed.changed, mail.*"
    await app.pieces.register(space="acme", piece_id="p", integration="daily")
    assert (await app.pieces.get("acme", "p")).schedule == "0 8 * * * Europe/Berlin"
    for wrong in ({"schedule": "never"}, {"schedule": "@daily", "every_seconds": 5}):
        with pytest.raises(ValidationError):
            await app.pieces.register(space="acme", piece_id="r", integration="daily", **wrong)


@pytest.mark.engines("postgres")
async def test_a_client_learns_the_times_from_the_node(make_times, make_app):
    """A client that has not the code tells when a piece runs, and registers it so, by the word of a living node."""
    async with make_times(), make_app().open(role="client") as client:
        await client.pieces.register(space="acme", piece_id="p", integration="waits", config={})
        await client.pieces.register(space="acme", piece_id="q", integration="daily", schedule="0 9 * * *")
        told = {piece.piece_id: (piece.observed, piece.schedule) for piece in await client.pieces.list()}
        assert told["p"] == ("waiting", "on feed.changed, mail.*")
        assert told["q"][1] == "0 9 * * * Europe/Berlin"
    assert (await looked_at(make_app)).schedule == "unknown: no living node has its integration"


async def looked_at(make_app):
    """A piece as an app without its code sees it."""
    async with make_app().open(role="client") as client:
        return await client.pieces.get("acme", "p")


@pytest.mark.covers("N401")
async def test_times_at_which_no_node_was_there(make_times, clock):
    """After downtime "once" is one update for all times that passed, "skip" none, and "all" one for each."""
    async with make_times(clock=clock) as app:
        for integration in ("daily", "daily-or-not", "each-day"):
            await add(app, integration, integration)
    await clock.advance(3 * 86400 + 9 * 3600)  # the fourth of January, nine o'clock: four times have passed
    async with make_times(clock=clock) as app:
        await clock.until_asleep()
        await clock.advance(1)
        assert (await ended(app, "daily", place=-2)).outcome == "success"
        assert (await ended(app, "daily-or-not", place=-2)).outcome == "skipped"
        for place in (-2, -3, -4, -5):
            await ended(app, "each-day", place=place)
        told = {}
        for piece in await app.pieces.list():
            updates = await app.pieces.runs("acme", piece.piece_id)
            told[piece.piece_id] = [update.outcome for update in updates if update.ended_at][:-1]
            assert moment(clock) < piece.next_run_at <= moment(clock) + DAY
        assert told == {"daily": ["success"], "daily-or-not": ["skipped"], "each-day": ["success"] * 4}


@pytest.mark.covers("N404")
async def test_a_piece_that_waits_for_events(app):
    """A piece with events alone is updated when one comes, by its exact type or a pattern, and sees it."""
    await app.pieces.register(space="acme", piece_id="p", integration="waits")
    piece = await app.pieces.get("acme", "p")
    assert (piece.observed, piece.next_run_at, await app.pieces.runs("acme", "p")) == ("waiting", None, [])
    heard = listen(app)
    await app.publish("feed.unchanged", {}, space="acme")
    for type_, event_id in (("feed.changed", "e-1"), ("mail.new", "e-2")):
        receipt = await app.publish(type_, {"n": event_id}, id=event_id, space="acme")
        told = {result.workflow_id: result.outcome for result in receipt.dispatched}
        assert told["piece:waits"] == "pending"  # in the commit that took the event
        update = await woken(app, heard)
        assert (update.trigger_id, update.result["event"]) == ("event", [type_, event_id, {"n": event_id}, "acme"])
    assert (await app.pieces.get("acme", "p")).observed == "waiting"
    assert len(await app.pieces.runs("acme", "p")) == 2


def listen(app, type_="looked"):
    """What is told of updates, as it comes."""
    heard = asyncio.Queue()
    app.bus.subscribe(type_, heard.put_nowait)
    return heard


async def woken(app, heard):
    """The next update that tells of itself, when it has ended."""
    event = await asyncio.wait_for(heard.get(), 25)
    piece_id, space = event.payload["piece"], event.space
    update = next(update for update in await app.pieces.runs(space, piece_id) if update.started_at is not None)
    _ = (await app.runtime.wait(update.run_id, timeout_seconds=25)).ok
    return await app.runtime.get(update.run_id)


@pytest.mark.covers("N404")
@ONE
async def test_an_event_is_for_its_space(app):
    """An event of a space wakes its pieces only; one without a space wakes those of every space."""
    for space in ("acme", "beta"):
        await app.pieces.register(space=space, piece_id="p", integration="waits")
    heard = listen(app)
    await app.publish("feed.changed", {}, space="beta")
    assert (await woken(app, heard)).space == "beta"
    assert await app.pieces.runs("acme", "p") == []
    await app.publish("feed.changed", {})
    both = [await woken(app, heard) for _ in range(2)]
    assert sorted((update.space, update.result["event"][3]) for update in both) == [("acme", None), ("beta", None)]


@pytest.mark.covers("N404")
@ONE
async def test_an_interval_and_events(app):
    """A piece with an interval and events is updated at once by an event; its interval begins anew after that."""
    await add(app, "waits-or-polls")
    queued = (await app.pieces.runs("acme", "p"))[0]
    assert queued.trigger_id == "interval"
    await app.publish("feed.changed", {}, space="acme")
    await app.runtime.wait(queued.run_id, timeout_seconds=25)
    update = await app.runtime.get(queued.run_id)
    assert (update.trigger_id, update.result["event"][0]) == ("event", "feed.changed")
    following = (await app.pieces.runs("acme", "p"))[0]
    assert (following.trigger_id, following.status) == ("interval", "queued")


@pytest.mark.covers("N405")
async def test_an_event_outlives_the_node_that_took_it(make_times, make_app, clock):
    """An event that was published where the pieces are not, or just before the end, wakes them when they are there."""
    async with make_times(clock=clock) as app:
        await app.pieces.register(space="acme", piece_id="p", integration="waits")
    async with make_app(clock=clock) as other:
        receipt = await other.publish("feed.changed", {}, id="e-1", space="acme")
        assert {result.outcome for result in receipt.dispatched} == {"pending"}
    app = make_times(clock=clock)
    heard = listen(app)
    async with app:
        assert (await woken(app, heard)).result["event"][1] == "e-1"


@ONE
async def test_a_piece_that_feeds_itself_stops(app):
    """A piece whose events wake itself is not woken for ever: its events count the updates that they came by."""
    await app.pieces.register(space="acme", piece_id="p", integration="feeds-itself")
    heard = listen(app, "round")
    await app.publish("round", {}, space="acme")
    told = [(await asyncio.wait_for(heard.get(), 25)).payload.get("hops") for _ in range(33)]
    assert told == [None, *range(32)]
    await ended(app, place=0)
    assert len(await app.pieces.runs("acme", "p")) == 32


@pytest.mark.covers("N403")
@pytest.mark.parametrize("overlap", ["skip", "queue", "cancel"])
@ONE
async def test_what_comes_while_an_update_is_under_way(app, line, overlap):
    """While one is under way "skip" adds nothing, "queue" one more right after it, "cancel" stops it for real first."""
    await app.pieces.register(space="acme", piece_id="p", integration=f"held-{overlap}", config=line.config)
    worker = await line.has_begun()
    (first,) = await app.pieces.runs("acme", "p")
    wanted = [(await app.pieces.run_now("acme", "p")).run_id for _ in range(2)]
    assert wanted == ([first.run_id] * 2 if overlap == "skip" else [wanted[0]] * 2)
    if overlap != "cancel":
        await line.let_go()
    if overlap != "skip":
        again = await line.has_begun()
        assert (again == worker) == (overlap == "queue")
        await line.let_go()
        assert (await app.runtime.wait(wanted[0], timeout_seconds=25)).ok
    found = await ended(app)
    assert found.outcome == ("interrupted" if overlap == "cancel" else "success")
    piece = await app.pieces.get("acme", "p")
    assert (piece.status, piece.consecutive_failures) == ("Success", 0)
    assert len(await app.pieces.runs("acme", "p")) == (2 if overlap == "skip" else 3)


@pytest.mark.covers("N500")
@ONE
@pytest.mark.parametrize("how", ["pause", "remove"])
async def test_who_waits_for_the_update_behind_is_told(app, line, how):
    """Who waits for the update that is to follow the one under way is told when it is called off."""
    await app.pieces.register(space="acme", piece_id="p", integration="held-queue", config=line.config)
    await line.has_begun()
    waiting = asyncio.ensure_future(app.pieces.run_now("acme", "p", wait=True))
    await app.pieces.run_now("acme", "p")  # behind it
    await getattr(app.pieces, how)("acme", "p")
    assert (await asyncio.wait_for(waiting, 20)).outcome == "interrupted"
    await line.let_go()


@pytest.mark.covers("A12")
@ONE
async def test_a_slow_piece_does_not_delay_its_neighbours(app, line):
    """While an update takes its time, those of other pieces of its space, and of other spaces, come and go."""
    await app.pieces.register(space="acme", piece_id="slow", integration="held-skip", config=line.config)
    await line.has_begun()
    for space in ("acme", "beta"):
        assert (await add(app, "minutely", "quick", space)).outcome == "success"
    for _ in range(2):
        assert (await app.pieces.run_now("acme", "quick", wait=True)).outcome == "success"
    assert (await app.pieces.runs("acme", "slow"))[0].ended_at is None
    await line.let_go()


@pytest.mark.covers("A13")
@ONE
async def test_off_and_on_while_an_update_is_under_way(app, line, clock):
    """Paused during its update a piece stays paused; paused and enabled during it, it has one update to come."""
    await app.pieces.register(space="acme", piece_id="p", integration="held-skip", config=line.config)
    await line.has_begun()
    await desire(app, "paused")
    await line.let_go()
    await ended(app)
    piece = await app.pieces.get("acme", "p")
    assert (piece.desired, piece.next_run_at, len(await app.pieces.runs("acme", "p"))) == ("paused", None, 1)
    await desire(app, "enabled")
    await clock.advance(61)  # by then the node has looked
    await line.has_begun()
    for desired in ("paused", "enabled") * 2:
        await desire(app, desired)
    await line.let_go()
    await line.has_begun()  # it was enabled during that update: one more follows, and no second one
    (third,) = [update for update in await app.pieces.runs("acme", "p") if update.ended_at is None]
    await line.let_go()
    assert (await app.runtime.wait(third.run_id, timeout_seconds=25)).ok
    unended = [update for update in await app.pieces.runs("acme", "p") if update.ended_at is None]
    assert [update.trigger_id for update in unended] == ["interval"]


@pytest.mark.covers("P15", "A15")
@ONE
async def test_a_removed_piece_is_due_no_more(app):
    """A removed piece is in no list, has no update to come, and no event wakes it; another of its name is new."""
    await add(app, "minutely", "timed")
    await app.pieces.register(space="acme", piece_id="woken", integration="waits")
    queued = (await app.pieces.runs("acme", "timed"))[0]
    for piece_id in ("timed", "woken"):
        await app.pieces.remove("acme", piece_id)
    assert await app.pieces.list() == []
    with pytest.raises(NotFoundError):
        await app.runtime.get(queued.run_id)
    assert await app.pieces.register(space="acme", piece_id="last", integration="waits")
    heard = listen(app)
    await app.publish("feed.changed", {}, space="acme")
    assert (await woken(app, heard)).key == "last"
    assert [update.key for update in await app.runtime.list_all_runs(kind="piece")] == ["last", "timed"]
    assert await app.pieces.register(space="acme", piece_id="timed", integration="minutely")


@pytest.mark.covers("A17")
@pytest.mark.parametrize("hours", [1, -1])
@ONE
async def test_a_clock_that_is_set_neither_stops_nor_storms(app, clock, hours):
    """When the wall clock is set by an hour, each piece's next update comes within its interval, and only one."""
    for name in ("a", "b", "c"):
        await add(app, "minutely", name)
    due = {name: (await app.pieces.runs("acme", name))[0].run_id for name in ("a", "b", "c")}
    clock.set(clock.now() + hours * 3600 * SECOND)
    await clock.until_asleep(2)
    await clock.advance(60 + 31)
    for name, run_id in due.items():
        await app.runtime.wait(run_id, timeout_seconds=25)
        piece = await app.pieces.get("acme", name)
        assert len(await app.pieces.runs("acme", name)) == 3
        assert moment(clock) < piece.next_run_at <= moment(clock) + timedelta(seconds=60)


@pytest.mark.covers("N513")
@pytest.mark.parametrize("hours", [1, 24 * 1000])
@ONE
async def test_a_schedule_goes_on_when_the_clock_was_set_back(app, clock, hours):
    """When the wall clock is set back a piece with a schedule goes on by it: the next of its times is not far off."""
    await add(app, "minutely", schedule="* * * * *")
    await add(app, "daily", "q")
    due = (await app.pieces.get("acme", "q")).next_run_at
    queued = (await app.pieces.runs("acme", "p"))[0]
    clock.set(clock.now() - hours * 3600 * SECOND)
    await clock.until_asleep(2)
    await clock.advance(31)
    await clock.advance(120)
    await app.runtime.wait(queued.run_id, timeout_seconds=25)
    piece = await app.pieces.get("acme", "p")
    assert moment(clock) < piece.next_run_at <= moment(clock) + timedelta(seconds=60)
    assert (piece.next_run_at.second, piece.next_run_at.microsecond) == (0, 0)
    at = (await app.pieces.get("acme", "q")).next_run_at
    assert moment(clock) < at <= min(due, moment(clock) + timedelta(hours=48))
    assert at.astimezone(ZoneInfo("Europe/Berlin")).hour == 8


@pytest.mark.covers("N402")
@ONE
async def test_what_is_overdue_after_a_start_comes_in_turn(make_times, clock):
    """After downtime overdue pieces run one after the other, those that have waited longest since an update first."""
    names = ["d", "a", "c", "b"]
    async with make_times(clock=clock) as app:
        for name in names:
            await add(app, "minutely", name, space=f"space-{name}")
            await clock.advance(1)
    await clock.advance(86400)
    async with make_times(clock=clock) as app:
        await ended(app, "d", "space-d", place=-2)
        due = {piece.piece_id: piece.next_run_at for piece in await app.pieces.list() if piece.piece_id != "d"}
        assert sorted(due, key=due.get) == names[1:]
        assert len(set(due.values())) == 3
        assert all(moment(clock) < at <= moment(clock) + timedelta(seconds=30) for at in due.values())


def test_pieces_are_declared_with_their_times():
    """A declaration with an interval and a schedule, or with a single event type for a list, is refused."""
    app = App("x")
    for wrong in ({"every_seconds": 1, "schedule": "@daily"}, {"on": "feed.changed"}, {"overlap": "allow"}):
        with pytest.raises(ValidationError):
            app.piece("feed", **wrong)
