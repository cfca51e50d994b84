"""Promises about the commands that ask a node, kept by a real one in another process."""

from __future__ import annotations

import pytest


@pytest.fixture
def order(ask, node):
    """The id of a run that waits for its approval."""
    receipt = ask("events", "publish", "order.placed", "--payload", '{"id": 7}', "--space", "acme", "--json").json
    run_id = receipt["dispatched"][0]["run_id"]
    while ask("runs", "show", run_id, "--json").json["status"] != "paused":
        pass  # it is on its way, and no command waits for a pause
    return run_id


@pytest.fixture
def piece(ask):
    """The id of a piece of space acme."""
    ask("pieces", "add", "acme", "hn", "--integration", "feed", "--config", '{"url": "https://hn.example"}')
    return "hn"


def test_an_event_is_published(ask):
    """`events publish` says that the event is durable, and which runs it started."""
    answer = ask("events", "publish", "order.placed", "--payload", '{"id": 1}', "--id", "evt-1")
    assert "event evt-1 is durable" in answer.out
    assert "started" in answer.out
    assert "order" in answer.out


def test_an_event_nobody_wants_is_published(ask):
    """`events publish` says so when no workflow was interested, and where to look why."""
    out = ask("events", "publish", "nothing.happened").out
    assert "no workflow was interested" in out
    assert "piecework runs explain RUN_ID --event ID" in out


def test_an_event_that_is_rejected_names_who_has_the_place(ask):
    """`events publish` says which run keeps an exclusive workflow busy."""
    first = ask("events", "publish", "audit.asked", "--json").json["dispatched"][0]["run_id"]
    out = ask("events", "publish", "audit.asked").out
    assert first in out
    assert "BUSY: that run has the place" in out
    ask("runs", "abort", first)


def test_a_second_event_of_one_id_is_a_duplicate(ask):
    """`events publish --id` twice starts one run."""
    first, second = (
        ask("events", "publish", "order.placed", "--payload", '{"id": 2}', "--id", "evt-2", "--json").json
        for _ in range(2)
    )
    assert [first["dispatched"][0]["outcome"], second["dispatched"][0]["outcome"]] == ["started", "duplicate"]
    assert first["dispatched"][0]["run_id"] == second["dispatched"][0]["run_id"]


def test_workflows_are_listed(ask):
    """`workflows list` shows each workflow with its event types and how many nodes have it."""
    page = ask("workflows", "list", "--json").json
    (info,) = [item for item in page["items"] if item["workflow_id"] == "order"]
    assert (info["events"], len(info["nodes"]), info["pending"]) == (["order.placed"], 1, 0)
    assert "order.placed" in ask("workflows", "list").out


def test_a_workflow_that_a_node_has_is_not_retired(ask, fail):
    """`workflows retire` refuses while a node has it, and names one that there is not."""
    assert "deregister it there" in fail("workflows", "retire", "order")
    assert "order" in fail("workflows", "retire", "oder")


def test_runs_are_listed(ask, order):
    """`runs list` shows whole run ids, names and what each waits for."""
    out = ask("runs", "list", "--status", "paused").out
    line = next(line for line in out.splitlines() if order in line)
    assert "acme" in line
    assert "waits for order.approved" in line


def test_runs_are_listed_for_programs(ask, order):
    """`runs list --json` prints items and the cursor behind them."""
    page = ask(
        "runs", "list", "--workflow", "order", "--space", "acme", "--kind", "workflow", "--limit", "1", "--json"
    ).json
    assert page["items"][0]["run_id"] == order
    assert set(page) == {"items", "next_cursor"}


def test_a_list_goes_on_behind_its_cursor(ask, order):
    """A page that is not the last tells how to go on."""
    ask("events", "publish", "order.placed", "--payload", '{"id": 3}')
    out = ask("runs", "list", "--limit", "1").out
    cursor = out.split("--cursor ")[1].strip()
    assert cursor not in ask("runs", "list", "--cursor", cursor).out


def test_an_empty_list_says_so(ask):
    """`runs list` without any run prints a sentence."""
    assert ask("runs", "list", "--space", "nobody").out == "no runs\n"


def test_a_run_is_shown(ask, order):
    """`runs show` prints what is known of a run, and its state."""
    out = ask("runs", "show", order).out
    assert order in out
    assert '"packed": true' in out
    assert "ago" in out
    assert ask("runs", "show", order, "--json").json["state"]["id"] == 7


_DRAWN = ("stage pack", "  ✓ pack", "packed  boxes=2")


def test_a_timeline_is_shown(ask, order):
    """`runs timeline` draws stages with their steps and what these logged, and says what the run waits for."""
    out = ask("runs", "timeline", order).out
    assert "+0.000 s  · run:started" in out
    stage, step, line = (next(n for n, line in enumerate(out.splitlines()) if word in line) for word in _DRAWN)
    assert stage < step < line
    assert "waits for order.approved" in out.splitlines()[-1]
    assert ask("runs", "timeline", order, "--json").json["items"][0]["type"] == "run:started"


def test_a_run_is_explained(ask, fail, order):
    """`runs explain` tells for each wait and clause why an event does not wake a run, and would like to know which."""
    asked = ("runs", "explain", order, "--type", "order.approved", "--payload", '{"id": 8}')
    out = ask(*asked).out
    assert "does not match: id == 7 is not met: the event has 8" in out
    assert "NOT id == 7, has 8" in out
    (answer,) = ask(*asked, "--json").json["items"]
    assert (answer["matches"], answer["clauses"][0]["ok"]) == (False, False)
    said = fail("runs", "explain", order)
    assert "--event ID" in said
    assert "--type TYPE --payload JSON" in said


def test_a_run_is_resumed(ask, order):
    """`runs resume` waits for what the run comes to."""
    assert f"run {order} is completed" in ask("runs", "resume", order, "--patch", '{"by": "Ada"}').out
    assert "once" in ask("runs", "show", order).out
    assert ask("runs", "show", order, "--json").json["state"]["by"] == "Ada"


def test_a_run_is_resumed_for_programs(ask, order):
    """`runs resume --json` prints status and state."""
    assert ask("runs", "resume", order, "--json").json["status"] == "completed"


def test_a_run_is_resumed_elsewhere(ask, fail, order):
    """`runs resume --at` goes on with that stage; one that there is not is told with near names."""
    assert "did you mean 'pack'" in fail("runs", "resume", order, "--at", "pakc")
    assert f"run {order} is paused, waiting for order.approved" in ask("runs", "resume", order, "--at", "pack").out


def test_a_resumed_run_that_fails_is_a_failure(fail, order):
    """`runs resume` of a run that then fails exits 1 with its error."""
    assert "the address is unknown" in fail("runs", "resume", order, "--patch", '{"bad": true}')


def test_a_run_is_aborted_once(ask, fail, order):
    """`runs abort` ends a run; one that has ended is a failure."""
    assert f"run {order} is aborted" in ask("runs", "abort", order, "--reason", "no stock").out
    assert ask("runs", "show", order, "--json").json["status"] == "aborted"
    assert "has ended" in fail("runs", "abort", order)


def test_a_piece_is_added_once(ask):
    """`pieces add` says whether the piece is new."""
    words = ("pieces", "add", "acme", "fresh", "--integration", "feed", "--every-seconds", "900")
    assert "is added" in ask(*words).out
    assert ask(*words, "--json").json["added"] is False


def test_pieces_are_listed(ask, piece):
    """`pieces list` shows each piece with its schedule."""
    line = next(line for line in ask("pieces", "list", "--space", "acme").out.splitlines() if "acme/hn" in line)
    assert "every 3600 s" in line
    assert piece in [item["piece_id"] for item in ask("pieces", "list", "--json").json["items"]]


def test_a_piece_runs_now(ask, piece):
    """`pieces run` waits for the update, `pieces show` has it among the latest runs."""
    out = ask("pieces", "run", "acme", piece).out
    assert '{"articles": 3}' in out
    assert "success" in ask("pieces", "show", "acme", piece).out
    assert ask("pieces", "show", "acme", piece, "--json").json["runs"][-1]["outcome"] == "success"


def test_a_piece_is_made_due(ask, piece):
    """`pieces run --no-wait` returns with the run that will be."""
    assert ask("pieces", "run", "acme", piece, "--no-wait", "--json").json["kind"] == "piece"


def test_an_update_that_fails_is_a_failure(ask, fail):
    """`pieces run` of an update that fails exits 1 with its error."""
    ask("pieces", "add", "acme", "bad", "--integration", "feed", "--config", '{"broken": true}')
    assert "the update of acme/bad failed: EXECUTION_FAILED: no such feed" in fail("pieces", "run", "acme", "bad")


def test_doctor_finds_the_node(ask, node):
    """`doctor` names the process that has the store and says that it answers."""
    found = {item["name"]: item for item in ask("doctor", "--json").json["items"]}
    assert f"open in process {node.process.pid}" in found["store"]["detail"]
    assert f"answers in process {node.process.pid}" in found["node"]["detail"]


def test_options_may_stand_before_the_command(run, node):
    """`--store` and `--app` may come first."""
    assert run("--store", node.store, "runs", "list").code == 0
    assert run(f"--store={node.store}", "--app", "shop:app", "runs", "list", "--json").code == 0


@pytest.mark.parametrize("command", ["show", "timeline", "resume", "abort"])
def test_an_unknown_run(fail, command):
    """A run that is not there is one clear line."""
    assert "nosuchrun" in fail("runs", command, "nosuchrun")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pieces", "show", "acme", "nosuchpiece"), "no piece in space 'acme' named 'nosuchpiece'"),
        (("pieces", "run", "acme", "nosuchpiece"), "nosuchpiece"),
        (("pieces", "show", "nosuchspace", "hn"), "there is no piece in space 'nosuchspace' at all"),
        (("pieces", "add", "acme", "x", "--integration", "feeed"), "did you mean 'feed'?"),
        (("pieces", "add", "acme", "x", "--integration", "feed", "--every-seconds", "-1"), "positive number"),
        (("pieces", "add", "acme", "x", "--integration", "feed", "--every-seconds", "1e-9"), "0.01 at least"),
        (("runs", "list", "--status", "lost"), "no status 'lost'"),
        (("runs", "list", "--cursor", "nosuchrun"), "nosuchrun"),
        (("events", "publish", "x", "--payload", '{"__state": 1}'), "reserved"),
        (("events", "publish", ""), "event type"),
        (("events", "publish", "x", "--payload", f'{{"n": {2**70}}}'), "beyond 64 bits"),
        (("runs", "list", "--store", "mysql://localhost/x"), "is not known"),
    ],
)
def test_what_cannot_be_done(fail, words, said):
    """Whatever the node refuses is one clear line."""
    assert said in fail(*words)


def test_a_filter_for_an_unknown_workflow_finds_nothing(ask):
    """A workflow that never ran has no runs."""
    assert ask("runs", "list", "--workflow", "nosuchworkflow", "--json").json == {"items": [], "next_cursor": None}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("events", "publish", "x", "--payload", '{"a":'), "line 1 column 6"),
        (("events", "publish", "x", "--payload", '{"a": NaN}'), "NaN"),
        (("events", "publish", "x", "--payload", "[1]"), "a JSON object"),
        (("runs", "resume", "r", "--patch", "{'a': 1}"), "line 1 column 2"),
        (("pieces", "add", "acme", "x", "--integration", "feed", "--config", "{"), "--config"),
        (("runs", "lsit"), "lsit"),
        (("runs", "show"), "RUN_ID"),
        (("runs", "list", "--nosuch"), "--nosuch"),
        (("runs", "list", "--limit", "many"), "many"),
        (("runs", "list", "--limit", "0"), "for --limit. Must be >= 1"),
        (("runs", "list", "--limit", "1001"), "for --limit. Must be <= 1000"),
        (("nosuch",), "nosuch"),
    ],
)
def test_what_is_not_understood(fail, words, said):
    """A word that is not understood is one clear line and exit code 2."""
    assert said in fail(*words, code=2)
