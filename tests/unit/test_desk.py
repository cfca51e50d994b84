"""Promises about the desk: what may be asked of a node, and in which form."""

from __future__ import annotations

import asyncio
import os

import pytest

from piecework import App, Event, Stage, WaitFor, Workflow
from piecework.desk import Desk
from piecework.errors import ClosedError, InvalidStateError, NotFoundError, ValidationError
from piecework.store.records import Digest


async def check(ctx):
    if ctx.state.get("bad"):
        raise ValueError("bad address")


def make_app(folder):
    app = App("shop", store=f"sqlite:///{folder}/store.db", env={})
    app.workflow(
        Workflow(
            "order",
            on="order.placed",
            stages=[Stage("review", wait=lambda ctx: WaitFor("order.approved")), Stage("check", steps=[check])],
        )
    )
    return app


@pytest.fixture
async def app(tmp_path):
    async with make_app(tmp_path) as app:
        yield app


@pytest.fixture
def desk(app):
    return Desk(app)


@pytest.fixture
async def paused(app, desk):
    """The id of a run that waits for its approval."""
    receipt = await desk.answer("publish", {"type": "order.placed", "payload": {"id": 7}, "space": "acme"})
    run_id = receipt["dispatched"][0]["run_id"]
    await app.runtime.wait(run_id, until="paused")
    return run_id


async def test_an_event_is_published(desk):
    """`publish` answers the receipt; a second event of the same id is a duplicate."""
    first = await desk.answer("publish", {"type": "order.placed", "id": "evt-1"})
    again = await desk.answer("publish", {"type": "order.placed", "id": "evt-1"})
    assert first["event_id"] == "evt-1"
    assert [first["dispatched"][0]["outcome"], again["dispatched"][0]["outcome"]] == ["started", "duplicate"]


async def test_a_job_is_queued_under_its_run_id(desk):
    """`enqueue` answers the run id; the same one twice is one run."""
    mail = {"to": ["a@b.c"], "subject": "Hi", "text": "Hi"}
    asked = {"name": "send-mail", "args": mail, "run_id": "r1", "delay_seconds": 3600}
    assert await desk.answer("enqueue", asked) == await desk.answer("enqueue", asked) == "r1"
    assert [run["run_id"] for run in (await desk.answer("runs.list", {"kind": "job"}))["items"]] == ["r1"]


async def test_a_run_is_shown_with_its_state(desk, paused):
    """`runs.show` answers the run and its data; moments are ISO 8601 texts in UTC."""
    run = await desk.answer("runs.show", {"run_id": paused})
    assert (run["status"], run["space"], run["state"]["id"]) == ("paused", "acme", 7)
    assert run["created_at"].endswith("Z")


async def test_runs_are_listed_page_by_page(app, desk):
    """`runs.list` answers the newest first; its cursor leads behind the last one, None says that there are no more."""
    ids = [
        (await app.runtime.invoke("order", "default", Event("order.placed", {"id": number}))).metadata.run_id
        for number in range(3)
    ]
    first = await desk.answer("runs.list", {"limit": 2})
    rest = await desk.answer("runs.list", {"limit": 2, "cursor": first["next_cursor"]})
    assert [run["run_id"] for run in first["items"] + rest["items"]] == ids[::-1]
    assert (first["next_cursor"], rest["next_cursor"]) == (ids[1], None)


@pytest.mark.parametrize(("field", "hit", "miss"), [("status", "paused", "failed"), ("workflow", "order", "x")])
async def test_runs_are_filtered(desk, paused, field, hit, miss):
    """Each filter keeps what it says."""
    assert len((await desk.answer("runs.list", {field: hit}))["items"]) == 1
    assert (await desk.answer("runs.list", {field: miss}))["items"] == []


async def test_a_timeline_is_told_oldest_first(desk, paused):
    """`runs.timeline` answers every entry in its order."""
    items = (await desk.answer("runs.timeline", {"run_id": paused}))["items"]
    assert [items[0]["type"], items[-1]["type"]] == ["run:started", "run:paused"]
    assert [item["seq"] for item in items] == list(range(1, len(items) + 1))


async def test_a_run_is_told_in_parts(app, desk, paused):
    """`runs.get`, `runs.watch` and `runs.state` tell a run and its data apart; `watch` is null for another workflow."""
    info = await desk.answer("runs.get", {"run_id": paused})
    assert (info["run_id"], info["status"], "state" in info) == (paused, "paused", False)
    assert await desk.answer("runs.watch", {"workflow_id": "order", "run_id": paused}) == info
    assert await desk.answer("runs.watch", {"workflow_id": "x", "run_id": paused}) is None
    assert await desk.answer("runs.state", {"run_id": paused}) == await app.runtime.state(paused)


async def test_a_timeline_comes_in_pages_that_fit(desk, paused, monkeypatch):
    """With a limit a timeline is told page by page; a page ends early where a frame would not carry it."""
    everything = (await desk.answer("runs.timeline", {"run_id": paused}))["items"]
    for limit, room in ((2, 10**6), (1000, 1)):
        monkeypatch.setattr("piecework.desk_form._PAGE_BYTES", room)
        found, cursor = [], 0
        while cursor is not None:
            page = await desk.answer("runs.timeline", {"run_id": paused, "limit": limit, "cursor": cursor})
            assert 0 < len(page["items"]) <= limit
            assert len(page["items"]) == 1 or room > 1
            found += page["items"]
            cursor = page["next_cursor"]
        assert found == everything


async def test_workflows_are_listed(desk):
    """`workflows.list` answers the ids of what is registered."""
    assert await desk.answer("workflows.list", {}) == {"items": ["order"], "next_cursor": None}


async def test_a_pipeline_is_invoked_under_the_run_s_id(app, desk):
    """`workflows.invoke` answers when the run is durable; the same run id again is the same run."""
    asked = {
        "workflow_id": "order",
        "trigger_id": "default",
        "run_id": "r-1",
        "type": "order.placed",
        "payload": {"n": 1},
    }
    told = [await desk.answer("workflows.invoke", asked) for _ in range(2)]
    assert [answer["metadata"]["run_id"] for answer in told] == ["r-1", "r-1"]
    assert (await app.runtime.wait("r-1", until="paused")).unwrap().state["n"] == 1
    assert len(await app.runtime.list_all_runs()) == 1


async def test_what_went_wrong_is_told_and_not_raised(desk):
    """`workflows.invoke` and `runs.wake` tell an error as part of their answer, with what it is about."""
    asked = {"workflow_id": "x", "trigger_id": "default", "run_id": "r-1", "type": "x"}
    told = await desk.answer("workflows.invoke", asked)
    assert (told["value"], told["metadata"], told["error"]["code"]) == (None, None, "NOT_FOUND")
    told = await desk.answer("runs.wake", {"run_id": "none", "token": "t"})
    assert (told["error"]["code"], told["error"]["data"], told["resumes"]) == ("NOT_FOUND", {"run_id": "none"}, 0)


async def test_a_wait_is_answered_in_its_time(desk, paused):
    """`runs.wait` is null while the run is not there; a pause of before a resume does not count as one after it."""
    assert await desk.answer("runs.wait", {"run_id": paused, "seconds": 0}) is None
    there = {"run_id": paused, "seconds": 20, "until": "paused"}
    assert (await desk.answer("runs.wait", there))["metadata"] == {"run_id": paused, "status": "paused"}
    assert await desk.answer("runs.wait", there | {"resumes": 1, "seconds": 0}) is None
    with pytest.raises(ValidationError, match="seconds"):
        await desk.answer("runs.wait", {"run_id": paused, "seconds": 61})


async def test_a_wake_under_its_token_is_one(desk, paused):
    """`runs.wake` twice under one token wakes once; `resumes` says behind which pause to wait."""
    told = [await desk.answer("runs.wake", {"run_id": paused, "token": "t-1", "patch": {"n": 1}}) for _ in range(2)]
    assert [(answer["error"], answer["resumes"]) for answer in told] == [(None, 1), (None, 1)]
    came_to = await desk.answer("runs.wait", {"run_id": paused, "seconds": 20, "until": "paused", "resumes": 1})
    assert (came_to["value"]["status"], came_to["value"]["state"]["n"]) == ("completed", 1)


async def test_an_abort_under_its_token_answers_the_same(desk, paused):
    """`runs.abort` twice under one token answers true twice."""
    answers = [await desk.answer("runs.abort", {"run_id": paused, "token": "t-1"}) for _ in range(2)]
    assert [answer["aborted"] for answer in answers] == [True, True]


async def test_a_resume_answers_what_the_run_came_to(desk, paused):
    """`runs.resume` waits until the run has completed, failed or paused again."""
    came_to = await desk.answer("runs.resume", {"run_id": paused, "patch": {"ok": True}})
    assert (came_to["run_id"], came_to["status"], came_to["state"]["ok"]) == (paused, "completed", True)


async def test_a_resume_that_does_not_wait_is_durable(app, desk, paused):
    """With `wait` false the answer comes at once, and the run goes on."""
    answer = await desk.answer("runs.resume", {"run_id": paused, "patch": {"ok": True}, "wait": False})
    assert answer["run_id"] == paused
    assert (await app.runtime.wait(paused)).unwrap().state["ok"] is True


@pytest.mark.parametrize("wait", [True, False])
async def test_a_run_that_is_not_paused_is_not_resumed(desk, paused, wait):
    """Resuming a run that has ended is INVALID_STATE."""
    await desk.answer("runs.abort", {"run_id": paused})
    with pytest.raises(InvalidStateError):
        await desk.answer("runs.resume", {"run_id": paused, "wait": wait})


async def test_an_abort_says_whether_it_was_in_time(desk, paused):
    """`runs.abort` answers true once, then false."""
    answers = [await desk.answer("runs.abort", {"run_id": paused, "reason": "no stock"}) for _ in range(2)]
    assert [answer["aborted"] for answer in answers] == [True, False]


@pytest.mark.parametrize("op", ["runs.show", "runs.timeline", "runs.resume", "runs.abort"])
async def test_an_unknown_run_is_not_found(desk, op):
    """Every question about a run that is not there is NOT_FOUND."""
    with pytest.raises(NotFoundError, match="no run 'none'"):
        await desk.answer(op, {"run_id": "none"})


async def test_pieces_without_an_integration_are_refused(desk):
    """A piece of an integration that the app does not have is NOT_FOUND; there are no pieces then, and no updates."""
    with pytest.raises(NotFoundError, match="no integration 'feed'"):
        await desk.answer("pieces.add", {"space": "acme", "piece_id": "hn", "integration": "feed"})
    for asked in ({}, {"limit": 10}):
        assert await desk.answer("pieces.list", asked) == {"items": [], "next_cursor": None}
    for op in ("pieces.get", "pieces.runs"):
        with pytest.raises(NotFoundError, match="hn"):
            await desk.answer(op, {"space": "acme", "piece_id": "hn"})


async def test_info_tells_who_the_node_is(app, desk):
    """`info` names the node, its process, its store and what it knows."""
    info = await desk.answer("info", {})
    assert (info["app"], info["pid"], info["store"], info["workflows"], info["integrations"], info["spaces"]) == (
        "shop",
        os.getpid(),
        app.store.url,
        ["order"],
        [],
        [],
    )


async def test_an_unknown_question_is_answered_with_near_ones(desk):
    """An op that there is not is NOT_FOUND, with the nearest."""
    with pytest.raises(NotFoundError, match=r"did you mean 'runs\.list'"):
        await desk.answer("runs.lst", {})


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({}, "`type`"),
        ({"type": "x", "paylod": {}}, "`paylod`"),
        ({"type": 7}, r"\$\.type"),
        ({"type": "x", "payload": []}, r"\$\.payload"),
    ],
)
async def test_a_wrong_field_is_named(desk, args, said):
    """A field that is missing, unknown or of the wrong type is refused by name."""
    with pytest.raises(ValidationError, match=rf"^publish: .*{said}"):
        await desk.answer("publish", args)


async def test_a_limit_has_bounds(desk):
    """A page is of one to a thousand."""
    for limit in (0, 1001):
        with pytest.raises(ValidationError, match="limit"):
            await desk.answer("runs.list", {"limit": limit})


async def test_a_worker_stays_in_its_space(app, desk):
    """What a worker publishes belongs to its own space, whatever it says."""
    answer = await desk.answer_worker("publish", {"type": "order.placed", "space": "other"}, space="acme")
    run = await app.runtime.get(answer["dispatched"][0]["run_id"])
    assert run.space == "acme"


async def test_a_notification_is_kept(app, desk):
    """`notify` keeps what somebody is to be told, a worker's in its own space; the same id twice is one."""
    told = {"notification_id": "n-1", "email": "ada@example.org", "body": "Hello"}
    for _ in range(2):
        assert await desk.answer_worker("notify", {**told, "space": "other"}, space="acme") is None
    await desk.answer("notify", {**told, "notification_id": "n-2", "frequency": "none"})
    with pytest.raises(ValidationError, match="weekly"):
        await desk.answer("notify", {**told, "frequency": "weekly"})
    counts = dict(await app.store.read("info_tables", {}))
    assert (counts["digests"], counts["notifications"]) == (1, 1)
    asked = {"now": 2**62, "after": 0, "after_id": "", "limit": 5}
    assert [(row.space, row.email) for row in await app.store.read("due_digests", asked, Digest)] == [
        ("acme", "ada@example.org")
    ]


async def test_a_worker_may_ask_for_no_more(desk):
    """What is for people is not answered to a worker."""
    with pytest.raises(NotFoundError, match="Workers may ask for no other"):
        await desk.answer_worker("runs.list", {}, space="acme")


async def test_a_closed_app_answers_nothing(tmp_path):
    """Asking an app that is not open is CLOSED."""
    with pytest.raises(ClosedError):
        await Desk(make_app(tmp_path)).answer("info", {})


async def test_two_resumes_are_one(desk, paused):
    """Of two that resume one run at once, one gets INVALID_STATE."""
    answers = await asyncio.gather(
        *(desk.answer("runs.resume", {"run_id": paused}) for _ in range(2)), return_exceptions=True
    )
    assert sorted(type(answer).__name__ for answer in answers) == ["InvalidStateError", "dict"]
