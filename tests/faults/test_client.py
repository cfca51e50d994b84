"""Nodes that go away under their clients, at every moment that matters."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from piecework import App, Event, Settings, Stage, Workflow
from piecework.bus.subscriptions import EventBus
from piecework.client.doors import RemoteIntake, RemotePieces, RemoteRuntime
from piecework.client.node_link import NodeLink
from piecework.clock import SystemClock
from piecework.errors import ClosedError, NoNodeError
from piecework.run.link_server import LinkServer
from piecework.store.lockfile import LockFile

HERE = Path(__file__).parent
PATIENCE_SECONDS = 25


class Successor:
    """A node of a file as far as its clients see one: a real link that answers from a script.

    Each answer may be a value, or `"dies"`: the node does what it is asked and goes away before it can say so.
    """

    def __init__(self, store, *answers, workflows=()):
        self.asked = []
        self.heard = asyncio.Event()
        self._answers = list(answers)
        self._workflows = list(workflows)
        self._lock = LockFile(store)
        self._server = LinkServer(self._answer, beside=store)

    async def __aenter__(self):
        self._lock.acquire()
        self._lock.describe(socket=str(await self._server.start()))
        return self

    async def __aexit__(self, *_):
        await self.go()

    async def go(self, how="stops"):
        if how == "vanishes":
            for peer in self._server._peers:
                peer.cut()
        await self._server.stop(0)
        if self._lock.note:
            self._lock.release()
            self._lock.note.clear()

    async def _answer(self, op, args):
        if op == "workflows.list":
            return {"items": self._workflows, "next_cursor": None}
        self.asked.append((op, args))
        answer = self._answers.pop(0)
        if answer == "dies":
            self.heard.set()
            await asyncio.Event().wait()
        return answer


@pytest.fixture
def store(tmp_path):
    return tmp_path / "state.db"


async def opened(store, timeout_seconds=PATIENCE_SECONDS):
    link = NodeLink(store, timeout_seconds=timeout_seconds)
    await link.open()
    return link


RECEIPT = {"event_id": "evt-1", "dispatched": []}
DONE = {"value": {"status": "completed", "state": {}, "waiting_for": None}, "error": None}
DONE["metadata"] = {"run_id": "r-1", "status": "completed"}
WOKEN = DONE | {"resumes": 1}

CALLS = {
    "publish": (lambda doors: doors["intake"].publish(Event("go")), "id", [RECEIPT]),
    "enqueue": (
        lambda doors: doors["intake"].enqueue("send-mail", {}, run_id=None, delay_seconds=None, dedup=None, space=None),
        "run_id",
        ["r-1"],
    ),
    "workflows.invoke": (lambda doors: doors["runtime"].invoke("flow", "default", Event("go")), "run_id", [DONE, DONE]),
    "runs.wake": (lambda doors: doors["runtime"].resume("r-1"), "token", [WOKEN, DONE]),
    "runs.abort": (lambda doors: doors["runtime"].abort("r-1"), "token", [{"run_id": "r-1", "aborted": True}]),
    "runs.wait": (lambda doors: doors["runtime"].wait("r-1"), "run_id", [DONE]),
}


def doors(link):
    intake = RemoteIntake(link, EventBus(), SystemClock(), 1000)
    return {"intake": intake, "runtime": RemoteRuntime(link, 1000), "pieces": RemotePieces(link)}


@pytest.mark.parametrize("how", ["stops", "vanishes"])
@pytest.mark.parametrize("op", CALLS)
async def test_a_call_whose_answer_was_lost_is_repeated_under_its_name(store, op, how):
    """When a node goes before it has answered, its successor is asked the very same: one id, so it happens once."""
    call, name, answers = CALLS[op]
    async with Successor(store, "dies") as first:
        link = await opened(store)
        calling = asyncio.ensure_future(call(doors(link)))
        await first.heard.wait()
        await first.go(how)
        async with Successor(store, *answers) as second:
            result = await calling
            await link.close()
    assert first.asked[0] == second.asked[0]
    assert first.asked[0][0] == op
    assert first.asked[0][1][name]
    _ = getattr(result, "ok", None)


@pytest.mark.parametrize("how", ["stops", "vanishes"])
@pytest.mark.parametrize("op", CALLS)
async def test_without_a_successor_the_outcome_is_unknown(store, op, how):
    """When a node goes before it has answered and none follows, it is NO_NODE, and says that the outcome is unknown."""
    call, _, _ = CALLS[op]
    async with Successor(store, "dies") as node:
        link = await opened(store, timeout_seconds=0.2)
        calling = asyncio.ensure_future(call(doors(link)))
        await node.heard.wait()
        await node.go(how)
        if op in {"workflows.invoke", "runs.wake"}:
            error = (await calling).error
            assert error.run_id
        else:
            with pytest.raises(NoNodeError) as caught:
                await calling
            error = caught.value
    await link.close()
    assert (error.code, error.unknown) == ("NO_NODE", True)
    assert f"whether {op} was done is unknown" in error.message


async def test_what_has_no_name_is_not_repeated(store):
    """Whether a piece's update was made due is not asked twice: the second could be another update."""
    async with Successor(store, "dies") as node:
        link = await opened(store)
        calling = asyncio.ensure_future(RemotePieces(link).run_now("acme", "hn"))
        await node.heard.wait()
        await node.go()
        async with Successor(store) as successor:
            with pytest.raises(NoNodeError, match="unknown"):
                await calling
            assert successor.asked == []
    await link.close()


async def test_a_node_that_dies_of_every_question_is_given_up(store):
    """A question after which one node after the other dies is not asked for ever."""
    link = NodeLink(store, timeout_seconds=0.3)
    asked = 0
    calling = None
    while calling is None or not calling.done():
        async with Successor(store, "dies") as node:
            calling = calling or asyncio.ensure_future(link.ask("publish", {"type": "go", "id": "evt-1"}))
            await asyncio.wait(
                {calling, (heard := asyncio.ensure_future(node.heard.wait()))}, return_when="FIRST_COMPLETED"
            )
            heard.cancel()
            await asyncio.gather(heard, return_exceptions=True)
            asked += len(node.asked)
    assert asked >= 1
    with pytest.raises(NoNodeError, match="unknown"):
        await calling
    await link.close()


async def test_many_callers_find_the_successor_together(store):
    """All who ask while there is no node wait for the same search; one of them may leave."""
    async with Successor(store):
        link = await opened(store)
    calls = [asyncio.ensure_future(link.ask("publish", {"type": "go", "id": f"evt-{n}"})) for n in range(5)]
    await asyncio.sleep(0)
    calls[0].cancel()
    async with Successor(store, *[RECEIPT] * 5, workflows=["flow"]) as successor:
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert answers[1:] == [RECEIPT] * 4
        assert isinstance(answers[0], asyncio.CancelledError)
        assert link.workflows == ["flow"]
        assert len(successor._server._peers) == 1
        await link.close()


async def test_each_caller_gets_an_error_of_its_own(store):
    """Of two that invoke when there is no node any more each gets NO_NODE with the name of its own run."""
    async with Successor(store):
        link = await opened(store, timeout_seconds=0.2)
    runtime = RemoteRuntime(link, 1000)
    results = await asyncio.gather(*(runtime.invoke("flow", "default", Event("go"), run_id=id_) for id_ in "ab"))
    assert [result.error.run_id for result in results] == ["a", "b"]
    assert [result.error.data.get("unknown") for result in results] == [None, None]
    await link.close()


async def test_a_closed_connection_asks_nobody(store):
    """After its end a connection refuses with CLOSED, also who was still looking for a node."""
    async with Successor(store):
        link = await opened(store)
    asking = asyncio.ensure_future(link.ask("info", {}))
    await asyncio.sleep(0)
    await link.close()
    await link.close()
    with pytest.raises(ClosedError):
        await asking
    with pytest.raises(ClosedError):
        await link.ask("info", {})


# -- real nodes that are killed ----------------------------------------------------------------------------------


class Node:
    """A node in a process of its own, told what to do by its standard input."""

    def __init__(self, url):
        self._url = url
        self._process = None
        self._said = []

    async def __aenter__(self):
        command = [sys.executable, "-W", "error", str(HERE / "client_node.py"), self._url]
        self._process = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=2**20
        )
        before = []
        while (said := await self.line()) != "ready":  # what it takes over may be there before
            assert said, "the node ended: see its standard error"
            before.append(said)
        self._said = before
        return self

    async def __aexit__(self, *_):
        await self.kill()
        with pytest.raises(ProcessLookupError):
            os.kill(self._process.pid, 0)

    async def line(self):
        """What it says next."""
        if self._said:
            return self._said.pop(0)
        async with asyncio.timeout(PATIENCE_SECONDS):
            return (await self._process.stdout.readline()).decode().strip()

    def let_go(self):
        """Lets the step that it is in go on."""
        self._process.stdin.write(b"\n")

    def send(self, number):
        self._process.send_signal(number)

    async def kill(self):
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()


def client_of(url):
    app = App("client", store=url, settings=Settings(connect_timeout_seconds=PATIENCE_SECONDS, lease_seconds=1))
    app.workflow(Workflow("held", on="go", stages=[Stage("only", steps=[print])]))
    return app


async def test_a_client_outlives_a_killed_node(tmp_path):
    """A client that waits for runs of a node that is killed gets what its successor made of them."""
    url = f"sqlite:///{tmp_path / 'state.db'}"
    async with Node(url) as node, client_of(url).open(role="client") as client:
        receipt = await client.publish("go", id="evt-1")
        run_id = receipt.dispatched[0].run_id
        assert await node.line() == f"in {run_id}"
        waiting = asyncio.ensure_future(client.runtime.wait(run_id))
        invoked = asyncio.ensure_future(client.runtime.invoke("held", "default", Event("go"), run_id="r-2"))
        assert await node.line() == "in r-2"
        await node.kill()
        publishing = asyncio.ensure_future(client.publish("go", id="evt-1"))
        async with Node(url) as successor:
            assert {await successor.line(), await successor.line()} == {f"in {run_id}", "in r-2"}
            assert [result.outcome for result in (await publishing).dispatched] == ["duplicate"]
            successor.let_go()
            assert (await waiting).unwrap().status == "completed"
            assert (await invoked).metadata.run_id == "r-2"
            assert len(await client.runtime.list_all_runs()) == 2


async def test_an_event_outlives_the_node_that_should_have_moved_it(postgres_url):
    """An event that came with a commit, and whose node was killed before it saw it, is run by another node."""
    async with Node(postgres_url) as node:
        node.send(signal.SIGSTOP)
        async with client_of(postgres_url).open(role="client") as client:
            connection = await asyncpg.connect(postgres_url)
            async with connection.transaction():
                await client.publish("go", {"n": 1}, id="evt-1", connection=connection)
            await node.kill()
            assert await connection.fetchval("SELECT count(*) FROM piecework.event_inbox") == 1
            await connection.close()
            async with Node(postgres_url) as other:
                said = await other.line()
                other.let_go()
                (run,) = await client.runtime.list_all_runs()
                assert said == f"in {run.run_id}"
                assert (await client.runtime.wait(run.run_id)).unwrap().state["n"] == 1


async def test_a_server_s_client_gets_the_run_of_a_killed_node(postgres_url):
    """On a server, what a killed node had is taken over by another, and its client waits on."""
    async with Node(postgres_url) as node, client_of(postgres_url).open(role="client") as client:
        invoked = asyncio.ensure_future(client.runtime.invoke("held", "default", Event("go"), run_id="r-1"))
        assert await node.line() == "in r-1"
        async with Node(postgres_url) as other:
            await node.kill()
            assert await other.line() == "in r-1"
            other.let_go()
            assert (await invoked).value.status == "completed"


@pytest.mark.covers("N257")
async def test_a_stopped_node_is_not_taken_over(tmp_path):
    """A node that is stopped still has the store: clients say NO_NODE, none takes over, and all goes on with it."""
    url = f"sqlite:///{tmp_path / 'state.db'}"
    app = App("client", store=url, settings=Settings(connect_timeout_seconds=1))
    async with Node(url) as node, app.open(role="auto"):
        node.send(signal.SIGSTOP)
        with pytest.raises(NoNodeError, match="is it stopped or blocked") as caught:
            await app.publish("go", id="evt-1")
        assert (caught.value.unknown, app.role) == (True, "client")
        node.send(signal.SIGCONT)
        receipt = await again(lambda: app.publish("go", id="evt-1"))
        run_id = receipt.dispatched[0].run_id
        assert await node.line() == f"in {run_id}"
        node.let_go()
        assert (await app.runtime.wait(run_id)).unwrap().status == "completed"
        assert len(await app.runtime.list_all_runs()) == 1


async def again(call):
    """What a call gives that is repeated as long as there is no node."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                return await call()
            except NoNodeError:
                continue


@pytest.mark.covers("N251")
async def test_a_client_takes_over_what_a_killed_node_ran(tmp_path):
    """A client of role auto goes on, in its own process, with the run of a node that was killed."""
    url = f"sqlite:///{tmp_path / 'state.db'}"
    async with Node(url) as node, client_of(url).open(role="auto") as client:
        invoked = asyncio.ensure_future(client.runtime.invoke("held", "default", Event("go"), run_id="r-1"))
        assert await node.line() == "in r-1"
        await node.kill()
        assert (await invoked).value.status == "completed"
        assert client.role == "node"
        assert (await client.runtime.get("r-1")).status == "completed"
