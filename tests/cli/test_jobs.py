"""Promises about jobs, commands, services and the prompt on the command line."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest


def test_jobs_are_listed(ask):
    """`jobs list` shows each job, and of a scheduled one when it comes next."""
    items = {job["name"]: job for job in ask("jobs", "list", "--json").json["items"]}
    assert {"double", "send-mail"} <= items.keys()
    assert items["double"]["schedule"] == "0 8 * * 1 Europe/Berlin"
    assert items["double"]["next_run_at"].endswith(("T06:00:00Z", "T07:00:00Z"))
    assert "0 8 * * 1 Europe/Berlin" in ask("jobs", "list").out


def test_a_job_is_queued(ask):
    """`jobs enqueue` prints the run's id, or with `--wait` what it came to."""
    run_id = ask("jobs", "enqueue", "double", "--args", '{"n": 4}').out.strip()
    assert ask("runs", "show", run_id, "--json").json["workflow_id"] == "double"
    assert ask("jobs", "enqueue", "double", "--args", '{"n": 4}', "--wait", "--json").json["result"] == 8


def test_a_delayed_job_is_queued_once(ask):
    """`jobs enqueue --dedup` twice answers one run."""
    words = ("jobs", "enqueue", "double", "--delay-seconds", "600", "--dedup", "x", "--json")
    assert ask(*words).json == ask(*words).json


def test_what_cannot_be_queued_fails(fail):
    """An unknown job, wrong arguments and a job that fails are one line and a failure."""
    assert "did you mean 'double'" in fail("jobs", "enqueue", "duble")
    assert "n is not acceptable" in fail("jobs", "enqueue", "double", "--args", '{"n": "many"}')
    assert "too small" in fail("jobs", "enqueue", "double", "--args", '{"n": -1}', "--wait")


@pytest.mark.covers("W81")
def test_a_command_is_called(ask):
    """`command NAME --user-id 7` calls the command beside the running node and prints its value."""
    words = ("--app", "shop:app", "command", "greet")
    assert ask(*words, "--user-id", "7").out == "Hello 7 None\n"
    assert ask("command", "greet", "--app", "shop:app", "--user-id=7", "--loud").out == "HELLO 7 NONE\n"
    told = ask("command", "greet", "--user-id", "7", "--tags", "a", "--tags", "b", "--app", "shop:app", "--json")
    assert told.json == "Hello 7 ['a', 'b']"


def test_a_command_reaches_the_node(ask):
    """What a command queues, the node runs."""
    assert ask("--app", "shop:app", "command", "queue", "--n", "4").out == "8\n"


def test_a_command_needs_no_node(run, tmp_path, monkeypatch):
    """Without a node the command's own process is the node, as long as it takes."""
    monkeypatch.setenv("PIECEWORK_APP", "shop:app")
    answer = run("command", "queue", "--n", "5", "--store", f"sqlite:///{tmp_path / 'own.db'}")
    assert (answer.code, answer.out) == (0, "10\n")


def test_what_cannot_be_called_fails(fail):
    """An unknown command, unknown or missing params, and a command that raises are one line and a failure."""
    words = ("--app", "shop:app", "command")
    assert "did you mean 'greet'" in fail(*words, "great")
    assert "user_id is missing" in fail(*words, "greet", "--userid", "7")
    assert "by name" in fail(*words, "greet", "7")
    assert "LookupError: nobody there" in fail(*words, "fails")


def test_commands_are_listed(run):
    """`command` alone lists the commands with their params."""
    answer = run("--app", "shop:app", "command")
    assert "greet" in answer.out
    assert "--user-id int [--loud]" in answer.out
    items = {one["name"]: one for one in run("--app", "shop:app", "command", "--json").json["items"]}
    assert items["greet"]["text"] == "Greets somebody."


@pytest.mark.covers("W59")
def test_services_are_listed(run):
    """`services list` shows what a workspace has; with `--client` what clients may use of it."""
    everything = {one["name"]: one for one in run("--app", "shop:app", "services", "list", "--json").json["items"]}
    assert {"greeting", "database", "send_mail", "run_command", "run_in_new_workspace"} <= everything.keys()
    assert everything["greeting"]["scope"] == "run"
    answer = run("--app", "shop:app", "services", "list", "--client")
    assert answer.code == 0
    assert "run_in_new_workspace" in answer.out
    assert "greeting" in answer.out
    assert "slow_greeting" not in answer.out


def test_services_need_an_app(run):
    """Without an app there is nothing to list: one line and a failure."""
    answer = run("services", "list")
    assert (answer.code, answer.err.count("\n")) == (1, 1)


@pytest.mark.covers("W79")
def test_the_prompt(command, node, tmp_path):
    """At the prompt `await` works, services are names, an error is shown and goes by, overrides end with it."""
    lines = [
        "x = await ws.run_command('greet', user_id=7)",
        "x",
        "greeting",
        "await slow_greeting",
        "1 / 0",
        "override = ws.override('greeting', 'Moin')",
        "override.__enter__()",
        "def shown():",
        "    return greeting",
        "",
        "shown()",
        "from piecework import current_workspace; current_workspace() is ws",
        "nothing_of_that_name",
    ]
    env = {**os.environ, "PIECEWORK_STORE": node.store, "PIECEWORK_APP": "shop:app"}
    ended = subprocess.run(
        [*command, "repl"],
        input="\n".join(lines) + "\n",
        cwd=Path(__file__).parent,
        env=env,
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    told = ended.stdout.splitlines()
    assert ended.returncode == 0, ended.stderr
    assert told == ["'Hello 7 None'", "'Hello'", "'Good morning'", "'Moin'", "'Moin'", "True"]
    assert "ZeroDivisionError" in ended.stderr
    assert "NameError: name 'nothing_of_that_name' is not defined" in ended.stderr


@pytest.mark.covers("W79")
def test_what_was_tried_at_the_prompt_is_undone(command, node, tmp_path):
    """With `--data rollback` or `clean`, leaving the prompt undoes what was done with the database."""
    with sqlite3.connect(tmp_path / "app.db") as database:
        database.execute("create table users (id integer primary key, name text)")
    database.close()
    url = f"sqlite:///{tmp_path / 'app.db'}"
    env = {**os.environ, "PIECEWORK_STORE": node.store, "PIECEWORK_APP": "shop:app", "PIECEWORK_DATABASE": url}
    lines = "_ = await ws.database.users.insert(name='Ada')\nawait ws.database.users.count()\n"

    def told(data):
        done = subprocess.run(
            [*command, "repl", "--data", data],
            input=lines,
            cwd=Path(__file__).parent,
            env=env,
            capture_output=True,
            text=True,
            timeout=25,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert [told(data) for data in ("rollback", "shared", "clean", "rollback")] == ["1\n", "1\n", "1\n", "2\n"]


@pytest.mark.parametrize("line", ["await asyncio.Event().wait()", "import time; time.sleep(600)"])
def test_a_line_at_the_prompt_is_interrupted(command, node, line):
    """Ctrl-C ends the line that is under way; the next one is read, and what is assigned is still there."""
    env = {**os.environ, "PIECEWORK_STORE": node.store, "PIECEWORK_APP": "shop:app"}
    pipe = subprocess.PIPE
    words = [*command, "repl"]
    here = Path(__file__).parent
    with subprocess.Popen(words, cwd=here, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as prompt:
        try:
            prompt.stdin.write(f"x = 7\nprint('begun', flush=True); {line}\n")
            prompt.stdin.flush()
            assert prompt.stdout.readline() == "begun\n"
            prompt.send_signal(signal.SIGINT)
            out, err = prompt.communicate("x\n", timeout=25)
        finally:
            prompt.kill()
    assert (prompt.returncode, out) == (0, "7\n"), err
    assert "cancelled" in err


def test_what_was_not_awaited_at_the_prompt_is_told(command, node):
    """A service that has to be awaited and was not is Python's own warning, and nothing is broken."""
    ended = subprocess.run(
        [*command, "repl"],
        input="slow_greeting\n_ = None\nawait slow_greeting\n",
        cwd=Path(__file__).parent,
        env={**os.environ, "PIECEWORK_STORE": node.store, "PIECEWORK_APP": "shop:app"},
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert "'Good morning'" in ended.stdout
    assert "was never awaited" in ended.stderr
    assert "Exception ignored" not in ended.stderr
    assert "app 'shop'" in ended.stderr


def test_a_service_is_listed_once(run):
    """What a workspace has by itself stands in `services list` once."""
    names = [one["name"] for one in run("--app", "shop:app", "services", "list", "--json").json["items"]]
    assert len(names) == len(set(names))
