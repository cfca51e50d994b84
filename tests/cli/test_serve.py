"""Promises about `piecework serve`: a node in a process of its own."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from piecework.run.link import LinkClient
from piecework.store.migrate import APPLICATION_ID


@pytest.mark.covers("P55")
def test_a_node_says_when_it_is_ready(serve, run):
    """One line names app, node, store, socket, workflows and integrations; after it clients are answered."""
    node = serve()
    words = dict(word.split("=", 1) for word in node.line().split()[1:])
    assert (words["app"], words["store"], words["pid"]) == ("shop", node.store, str(node.process.pid))
    assert (words["workflows"], words["integrations"]) == ("order,hang,audit", "feed")
    assert Path(words["socket"]).is_socket()
    assert run("runs", "list", "--store", node.store).code == 0


@pytest.mark.covers("P55")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(serve, number):
    """Ctrl-C and SIGTERM end a node with exit code 0; nothing is left of it."""
    node = serve()
    node.line()
    node.signal(number)
    assert node.ended() == 0


def test_a_second_signal_ends_it_at_once(serve, run):
    """While runs are given their time to end, another signal ends the node with exit code 1."""
    node = serve()
    node.line()
    assert run("events", "publish", "hang", "--store", node.store).code == 0
    assert node.line() == "hanging\n"
    node.signal(signal.SIGINT, signal.SIGTERM)
    assert node.ended() == 1
    assert "ended at once" in node.stderr.read_text()


def test_a_node_that_is_still_opening_can_be_stopped(serve):
    """A signal before the node is ready ends it in order too."""
    node = serve(app="slow:app")
    assert node.line() == "opening\n"
    node.signal(signal.SIGTERM)
    assert node.ended() == 0


@pytest.mark.covers("P55")
def test_an_end_that_fails_is_an_end(serve):
    """What fails while a node stops does not keep it: it is told with the error, and the exit code is not 0."""
    node = serve(app="stubborn:app")
    node.line()
    node.signal(signal.SIGTERM)
    assert node.ended() == 1
    assert "the door is stuck" in node.stderr.read_text()


@pytest.mark.covers("P55")
@pytest.mark.parametrize("error", ["ValueError", "SystemExit"])
def test_a_start_that_fails_is_told(serve, error, monkeypatch):
    """Whatever is raised while a node opens is told, and the exit code is not 0."""
    monkeypatch.setenv("STUBBORN", error)
    node = serve(app="stubborn:app")
    assert node.line() == ""
    assert node.ended() != 0
    assert error in node.stderr.read_text() or "the door is not there" in node.stderr.read_text()


@pytest.mark.covers("P55")
def test_it_runs_only_as_the_main_program(command):
    """To import the program runs nothing; to run it as a module runs it."""
    told = subprocess.run(
        [sys.executable, "-c", "import piecework.__main__"], capture_output=True, text=True, check=True
    )
    assert (told.stdout, told.stderr) == ("", "")


@pytest.fixture
def waited(monkeypatch):
    """How long commands would have waited for a node."""
    connect, seen = LinkClient.connect, []

    async def once(path, *, timeout_seconds):
        seen.append(timeout_seconds)
        return await connect(path, timeout_seconds=0)

    monkeypatch.setattr(LinkClient, "connect", once)
    return seen


@pytest.mark.covers("P54")
@pytest.mark.parametrize(("given", "seconds"), [(None, 5), ("30", 30), ("0.5", 0.5), ("0", 0)])
def test_how_long_a_command_waits_for_a_node(run, tmp_path, monkeypatch, waited, given, seconds):
    """PIECEWORK_CONNECT_TIMEOUT_SECONDS is how long a command waits for a node; 5 s where nothing is said."""
    monkeypatch.delenv("PIECEWORK_CONNECT_TIMEOUT_SECONDS")
    if given is not None:
        monkeypatch.setenv("PIECEWORK_CONNECT_TIMEOUT_SECONDS", given)
    assert run("runs", "list", "--store", f"sqlite:///{tmp_path}/store.db").code == 1
    assert waited == [seconds]


@pytest.mark.covers("P54")
@pytest.mark.parametrize("given", ["soon", "-1", "nan", "", "5 s"])
def test_a_timeout_that_is_none_is_refused(run, tmp_path, monkeypatch, given):
    """What is no number of seconds is refused in one line that names the variable."""
    monkeypatch.setenv("PIECEWORK_CONNECT_TIMEOUT_SECONDS", given)
    answer = run("runs", "list", "--store", f"sqlite:///{tmp_path}/store.db")
    assert (answer.code, answer.err.count("\n")) == (1, 1)
    assert "PIECEWORK_CONNECT_TIMEOUT_SECONDS" in answer.err


def test_an_app_may_come_from_a_function(serve, run):
    """MODULE:ATTRIBUTE may name a function that makes the app; its pieces run in workers that call it too."""
    node = serve(app="shop:create_app")
    assert "app=made-shop" in node.line()
    assert run("pieces", "add", "acme", "hn", "--integration", "feed", "--store", node.store).code == 0
    assert '{"articles": 3}' in run("pieces", "run", "acme", "hn", "--store", node.store).out


def test_logs_come_as_json(serve):
    """`--json-logs` writes one JSON object a line to standard error."""
    node = serve("--json-logs")
    node.line()
    assert node.stderr.read_text().startswith('{"')


def test_a_node_has_stopped_when_it_has_stopped(serve, run, monkeypatch):
    """The log says that a node stops before it says that it has."""
    monkeypatch.setenv("PIECEWORK_CLOSE_TIMEOUT_SECONDS", "0.1")
    node = serve("--json-logs")
    node.line()
    where = ("--store", node.store)
    assert run("pieces", "add", "acme", "slow", "--integration", "feed", "--config", '{"slow": true}', *where).code == 0
    while '"running"' not in run("pieces", "list", "--json", *where).out:
        pass
    node.end()
    logged = [json.loads(line)["event"] for line in node.stderr.read_text().splitlines() if line.startswith("{")]
    assert [event for event in logged if event.startswith("node.stop")] == ["node.stopping", "node.stopped"]


@pytest.mark.covers("N516")
def test_who_waits_is_told_when_the_node_dies(serve, run, command):
    """Who waits in `pieces run` for an update whose node dies is told that the next node goes on with it."""
    node = serve()
    node.line()
    where = ("--store", node.store)
    assert run("pieces", "add", "acme", "slow", "--integration", "feed", "--config", '{"slow": true}', *where).code == 0
    words = [*command, "pieces", "run", "acme", "slow", *where]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as waiting:
        run_id = waiting.stderr.readline().split("(run ")[1].split(")")[0]
        node.signal(signal.SIGKILL)
        node.ended()
        said = waiting.stderr.read()
    assert (waiting.returncode, said.count("\n")) == (1, 1)
    assert f"the next node goes on with update {run_id} of acme/slow" in said
    assert "unknown" not in said


def test_a_second_node_of_a_store_names_the_first(serve):
    """Another `serve` on the same store fails and says which process has it."""
    first = serve()
    first.line()
    second = serve(store=first.store)
    assert second.ended() == 1
    assert f"process {first.process.pid} is the node" in second.stderr.read_text()


def failed(run, *words):
    answer = run("serve", *words)
    assert answer.code == 1
    last = answer.err.splitlines()[-1]
    assert last.startswith("piecework: ")
    assert "Traceback" not in answer.err
    return last


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nosuchmodule:app", "no module 'nosuchmodule'"),
        ("shop", "MODULE:ATTRIBUTE"),
        ("shop:ap", "did you mean 'app'"),
        ("shop:not_an_app", "is a int, not a piecework.App"),
        ("broken:app", "ValueError: invalid literal"),
    ],
)
def test_an_app_that_cannot_be_imported(run, name, said):
    """Each way in which an app cannot be found is one clear line."""
    assert said in failed(run, name)


def test_a_module_that_raises_is_told_with_its_line(run):
    """When the import itself raised, the line of the user's file is named."""
    assert "broken.py, line 5" in failed(run, "broken:app")


def test_no_app_at_all(run, tmp_path, monkeypatch):
    """Without any app it is said how to name one."""
    monkeypatch.chdir(tmp_path)
    assert "piecework serve MODULE:ATTRIBUTE" in failed(run)


def test_a_file_that_is_no_store(run, tmp_path):
    """A file of something else is refused and left alone."""
    file = tmp_path / "notes.txt"
    file.write_text("these are my notes, and no database at all\n" * 100)
    assert "file is not a database" in failed(run, "shop:app", "--store", f"sqlite:///{file}")
    assert file.read_text().startswith("these are my notes")


def test_a_store_of_a_newer_version(run, tmp_path):
    """A store with a schema that is not known yet is refused."""
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert "schema version 99" in failed(run, "shop:app", "--store", f"sqlite:///{tmp_path}/store.db")


def test_a_store_that_cannot_be_made(run, tmp_path):
    """A folder that cannot be made is one clear line."""
    (tmp_path / "file").write_text("")
    assert "cannot be opened" in failed(run, "shop:app", "--store", f"sqlite:///{tmp_path}/file/store.db")
