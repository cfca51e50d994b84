"""Jobs of the user's own: durable, awaited or not, tried again, stopped in time."""

from __future__ import annotations

import asyncio
import threading
from datetime import date

import pytest

from piecework import Failed, RetryAfter, Skipped, Success
from piecework.errors import (
    AbortedError,
    DuplicateKeyError,
    ExecutionFailedError,
    InvalidStateError,
    NotFoundError,
    PieceworkError,
    TimeoutExceededError,
    ValidationError,
)

LIMIT = 20


async def ended(app, run_id):
    return await app.runtime.wait(run_id, timeout_seconds=LIMIT)


@pytest.mark.covers("W93")
async def test_a_background_job_has_a_workspace_of_its_own(make_app):
    """A job runs in a new root workspace, gets its arguments, and gives its value to who awaits it."""
    app, seen = make_app(), {}

    @app.job("count")
    async def count(ws, limit: int = 100):
        seen.update(root=ws.root.id, params=ws.params, user=ws.user, space=ws.space)
        return {"limit": limit}

    async with app, app.workspace(user="ada", space="acme", params={"page": 1}) as ws:
        assert await ws.run_background_job("count", limit=5) == {"limit": 5}
        assert await count.run(limit=6) == {"limit": 6}
        assert await app.run_background_job("count") == {"limit": 100}
        assert await count.options(space="acme").run(7) == {"limit": 7}
        assert seen["root"] != ws.id
    assert (seen["params"], seen["user"], seen["space"]) == ({"limit": 7}, None, "acme")


@pytest.mark.covers("W93")
async def test_an_unknown_job_is_refused(make_app):
    """A job that there is not is refused with near names, and nothing is queued."""
    app = make_app()
    app.job("deliver")(lambda: None)
    async with app, app.workspace() as ws:
        for call in (ws.run_background_job, ws.enqueue_job, app.enqueue_job):
            with pytest.raises(NotFoundError, match="did you mean 'deliver'"):
                await call("delivr")
        assert await app.runtime.list_all_runs() == []


@pytest.mark.covers("W93")
async def test_an_awaited_failure_raises(make_app):
    """Who awaits a job that fails gets its error, with its words; the run has failed."""
    app = make_app()

    @app.job("bad")
    async def bad(ws):
        raise LookupError("no such thing")

    async with app:
        with pytest.raises(ExecutionFailedError, match="LookupError: no such thing"):
            await bad.run()
        (info,) = await app.runtime.list_all_runs()
        assert (info.status, info.attempt) == ("failed", 1)


@pytest.mark.covers("N161")
async def test_arguments_are_checked_where_a_job_is_queued(make_app):
    """Unknown, missing or wrong arguments of a job are refused before anything is queued, each with its reason."""
    app = make_app()

    @app.job("report")
    async def report(ws, user_id: int, day: date | None = None):
        return [user_id, str(day)]

    async with app:
        with pytest.raises(ValidationError) as caught:
            await app.enqueue_job("report", userid=7)
        assert set(caught.value.fields) == {"userid", "user_id"}
        with pytest.raises(ValidationError):
            await report.enqueue(user_id="many")
        assert await app.runtime.list_all_runs() == []
        assert await report.run(user_id="7", day=date(2026, 3, 29)) == [7, "2026-03-29"]


@pytest.mark.covers("N161")
async def test_a_queued_job_survives_a_restart(make_app):
    """A job that `enqueue` answered for is durable: a node that starts later runs it."""
    first, second, seen = make_app(), make_app(), []
    for app in (first, second):

        @app.job("later")
        async def later(ws, n: int):
            seen.append((ws.host, n))

    async with first:
        run_id = await first.enqueue("later", {"n": 1}, delay_seconds=0.2)
    async with second:
        assert (await ended(second, run_id)).ok
    assert seen == [(second, 1)]


@pytest.mark.covers("N162")
async def test_a_job_that_fails_is_tried_again(make_app):
    """A job is tried again as often as `retries` says, with the same key; then it has failed."""
    app, keys = make_app(), []

    @app.job("flaky", retries=2)
    async def flaky(ws, good: int):
        keys.append(ws.key)
        if len(keys) < good:
            raise RuntimeError("not yet")
        return len(keys)

    async with app:
        assert await flaky.run(good=2) == 2
        keys.clear()
        with pytest.raises(ExecutionFailedError, match="not yet"):
            await flaky.run(good=9)
    assert (len(keys), len(set(keys))) == (3, 1)


@pytest.mark.covers("N162")
async def test_a_job_is_not_retried_unless_it_says_so(make_app):
    """Without `retries` a job that fails has failed."""
    app, calls = make_app(), []

    @app.job("once")
    def once():
        calls.append(1)
        raise RuntimeError("no")

    async with app:
        with pytest.raises(ExecutionFailedError):
            await once.run()
    assert calls == [1]


@pytest.mark.covers("N163")
async def test_a_timeout_stops_a_job(make_app):
    """A job that takes longer than its timeout is cancelled, cleaned up after, and fails with TIMEOUT."""
    app, closed = make_app(), []

    @app.job("slow", timeout_seconds=0.05)
    async def slow(ws):
        try:
            await asyncio.Event().wait()
        finally:
            closed.append(ws.closed)

    async with app:
        with pytest.raises(TimeoutExceededError, match="longer than"):
            await slow.run()
    assert closed == [False]


@pytest.mark.covers("N163")
async def test_a_synchronous_job_is_not_tried_again_beside_itself(make_app):
    """A synchronous job that is too slow cannot be stopped: it fails at once, though it had retries left."""
    app, calls, go = make_app(), [], threading.Event()

    @app.job("hangs", timeout_seconds=0.05, retries=5)
    def hangs():
        calls.append(1)
        go.wait(LIMIT)

    async with app:
        with pytest.raises(TimeoutExceededError, match="cannot be stopped"):
            await hangs.run()
        assert calls == [1]
        go.set()


@pytest.mark.covers("N164")
async def test_what_a_job_may_return(make_app):
    """Success, Skipped, RetryAfter and Failed mean for a job what they mean for a piece."""
    app, calls = make_app(), []

    @app.job("says", retries=5)
    async def says(ws, what: str):
        calls.append(what)
        match what:
            case "success":
                return Success({"n": 1})
            case "skipped":
                return Skipped("nothing new")
            case "later" if calls.count("later") == 1:
                return RetryAfter(0)
            case "never":
                return Failed("gone", permanent=True)
        return what

    async with app:
        assert await says.run("success") == {"n": 1}
        assert await says.run("skipped") is None
        assert await says.run("later") == "later"
        with pytest.raises(ExecutionFailedError, match="gone"):
            await says.run("never")
        outcomes = {info.outcome for info in await app.runtime.list_all_runs()}
        (skipped,) = [info for info in await app.runtime.list_all_runs() if info.outcome == "skipped"]
        lines = {entry.type: entry.payload for entry in await app.runtime.timeline(skipped.run_id)}
    assert outcomes == {"success", "skipped", None}
    assert lines["job:skipped"] == {"reason": "nothing new"}
    assert (calls.count("never"), calls.count("later")) == (1, 2)


@pytest.mark.covers("N164")
async def test_a_jobs_value_is_json(make_app):
    """A job that returns what is not JSON fails and says what it was."""
    app = make_app()
    job = app.job("odd", retries=3)(lambda: {1, 2})
    async with app:
        with pytest.raises(ValidationError, match="set"):
            await job.run()


@pytest.mark.covers("N165")
async def test_dedup_makes_one_of_many(make_app):
    """While a job of a key is queued or running, its run stands for further ones; after its end there is a new one."""
    app, go, calls = make_app(), asyncio.Event(), []

    @app.job("digest")
    async def digest(ws):
        calls.append(ws.key)
        await go.wait()

    @app.job("other")
    async def other(ws): ...

    async with app:
        digests = digest.options(dedup="ada")
        ids = await asyncio.gather(*(digests.enqueue() for _ in range(5)))
        assert len(set(ids)) == 1
        assert await digest.options(dedup="bob").enqueue() not in ids
        assert await other.options(dedup="ada").enqueue() not in ids
        go.set()
        assert (await ended(app, ids[0])).ok
        again = await digests.enqueue()
        assert again not in ids
        assert (await ended(app, again)).ok


@pytest.mark.covers("N161")
async def test_a_job_may_be_delayed(make_app, clock):
    """A delayed job begins no sooner than it says."""
    app, calls = make_app(clock=clock), []
    job = app.job("later")(lambda: calls.append(clock.now()))
    async with app:
        begun = clock.now()
        run_id = await job.options(delay_seconds=60).enqueue()
        assert (await app.runtime.get(run_id)).status == "queued"
        waiting = asyncio.ensure_future(ended(app, run_id))
        while not waiting.done():
            await clock.advance(5)
        assert (await waiting).ok
    assert calls[0] - begun >= 60_000_000


@pytest.mark.covers("N166")
async def test_work_that_is_done_again_queues_a_job_once(make_app):
    """In a workspace with a key, what is done again queues the same jobs once; two alike are two."""
    app = make_app()
    job = app.job("j")(lambda n=0: n)
    async with app:
        ids = []
        for _ in range(2):
            async with app.workspace(key="work") as ws:
                ids.append([await ws.enqueue_job("j", n=1), await ws.enqueue_job("j", n=1), await job.enqueue(n=2)])
        assert ids[0] == ids[1]
        assert len(set(ids[0])) == 3
        assert await job.enqueue(n=2) != await job.enqueue(n=2)


@pytest.mark.covers("N166")
async def test_a_jobs_overrides_are_its_callers(make_app):
    """A job that is queued where a service is overridden has the override."""
    app = make_app()

    @app.service(scope="run")
    def mood():
        return "real"

    @app.job("tell")
    async def tell(mood):
        return mood

    async with app, app.workspace() as ws:
        with ws.override("mood", "fake"):
            assert await ws.run_background_job("tell") == "fake"
            assert await tell.run() == "fake"
        assert await tell.run() == "real"


@pytest.mark.covers("N166")
async def test_a_jobs_log_stands_in_its_timeline(make_app):
    """What a job logs stands in its run's timeline."""
    app = make_app()

    @app.job("logs")
    async def logs(ws):
        ws.logger.info("half way", pages=3)

    async with app:
        run_id = await logs.enqueue()
        assert (await ended(app, run_id)).ok
        lines = [entry.payload for entry in await app.runtime.timeline(run_id) if entry.type == "log.info"]
    assert [(line["message"], line["fields"]["pages"]) for line in lines] == [("half way", 3)]


@pytest.mark.covers("N166")
async def test_a_job_can_be_aborted(make_app):
    """An abort cancels a job that runs and ends one that waits; who awaits it is told."""
    app, begun = make_app(), asyncio.Event()

    @app.job("long")
    async def long(ws):
        begun.set()
        await asyncio.Event().wait()

    async with app:
        run_id = await long.enqueue()
        await begun.wait()
        assert await app.runtime.abort(run_id)
        with pytest.raises(AbortedError):
            await app.job_value(run_id)
        waiting = await long.options(delay_seconds=600).enqueue()
        assert await app.runtime.abort(waiting)
        with pytest.raises(PieceworkError):
            await app.job_value(waiting)


@pytest.mark.covers("N166")
async def test_a_job_is_still_its_function(make_app):
    """A declared job is called as the function that it is: nothing is queued."""
    app = make_app()

    @app.job("double")
    def double(ws, n: int) -> int:
        """Doubles."""
        return 2 * n

    assert (double(None, 4), double.__doc__, double.name) == (8, "Doubles.", "double")


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_seconds": 0},
        {"retries": -1},
        {"retries": True},
        {"missed": "some"},
        {"overlap": "maybe"},
        {"jitter": 2},
        {"tz": "Europe/Berlin"},
        {"schedule": "* * *"},
        {"schedule": "@reboot"},
        {"schedule": "0 0 31 2 *"},
        {"schedule": "* * * * *", "tz": "Europe/Berlim"},
    ],
)
@pytest.mark.covers("N167")
@pytest.mark.engines("sqlite")
async def test_bad_declarations_are_refused(make_app, options):
    """A job's numbers, choices, schedule and time zone are checked where it is declared."""
    with pytest.raises(ValidationError):
        make_app().job("bad", **options)(lambda: None)


@pytest.mark.covers("N167")
@pytest.mark.engines("sqlite")
async def test_jobs_are_declared_once_and_before(make_app):
    """A job has a name of its own and is declared before the app opens; one with a schedule needs defaults."""
    app = make_app()
    app.job("x")(lambda: None)
    for name in ("x", "send-mail"):
        with pytest.raises(DuplicateKeyError):
            app.job(name)(lambda: None)
    async with app:
        with pytest.raises(InvalidStateError):
            app.job("y")(lambda: None)
    app.job("z", schedule="@daily")(lambda user_id: None)
    with pytest.raises(ValidationError, match="user_id"):
        async with app:
            pass


@pytest.mark.covers("N171")
async def test_a_client_has_jobs_run(make_app):
    """A client queues and awaits jobs as a node does; also jobs that it does not declare itself."""
    node, client, bare = make_app(), make_app(), make_app()
    for app in (node, client):

        @app.job("double")
        async def double(ws, n: int = 1):
            if n < 0:
                raise ValueError("too small")
            return [ws.space, 2 * n]

    async with node, client.open(role="client"), bare.open(role="client"):
        assert await client.run_background_job("double", n="4") == ["default", 8]
        async with bare.workspace(space="acme") as ws:
            assert await ws.run_background_job("double", n=5) == ["acme", 10]
        with pytest.raises(ExecutionFailedError, match="too small"):
            await bare.run_background_job("double", n=-1)
        with pytest.raises(NotFoundError, match="did you mean 'double'"):
            await bare.enqueue_job("duble")
        first, second = [await bare.enqueue("double", {}, delay_seconds=60, dedup="x") for _ in range(2)]
        assert first == second


@pytest.mark.covers("N171")
@pytest.mark.engines("sqlite")
async def test_of_several_processes_one_is_the_node(make_app):
    """`open(role="auto")` is the node of a file that has none, and else its client."""
    node, client = make_app(), make_app()
    node.job("double")(lambda n: 2 * n)
    async with node.open(role="auto"), client.open(role="auto"):
        assert node.node_id
        with pytest.raises(InvalidStateError, match="client"):
            _ = client.store
        assert await client.run_background_job("double", n=3) == 6
