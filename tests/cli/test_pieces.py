"""Promises about looking after pieces and their spaces on the command line, kept by a real node."""

from __future__ import annotations

import signal
import subprocess

import pytest


@pytest.fixture
def add(ask):
    """Registers a piece of the space that is named after the test, with a configuration."""

    def add(piece_id, config, space="reports"):
        ask("pieces", "add", space, piece_id, "--integration", "feed", "--config", config)
        return space, piece_id

    return add


@pytest.fixture
def terminal(monkeypatch):
    """Has commands print as on a terminal of a width."""

    def terminal(width):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(width))

    return terminal


@pytest.fixture
def started(command, node, monkeypatch):
    """Starts a command in a process of its own, with a pipe for each of its streams."""
    monkeypatch.setenv("PIECEWORK_STORE", node.store)
    processes = []

    def start(*words):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen([*command, *words], text=True, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.covers("N480")
def test_updates_are_reported(ask, run, add):
    """`pieces runs` tells what came of each update, how long it took, why it failed and what comes next."""
    good, old, bad = add("good", '{"url": "x"}'), add("old", '{"old": true}'), add("bad", '{"broken": true}')
    assert 'reports/good succeeded: {"articles": 3}' in ask("pieces", "run", *good, "--wait").out
    ask("pieces", "run", *old, "-w")
    assert run("pieces", "run", *bad).code == 1
    out = ask("pieces", "runs", *good).out
    assert 'succeeded: {"articles": 3}' in out
    assert "reports/good is due in 1 h (every 3600 s)" in out.replace("60 min", "1 h")
    assert "had nothing to do: not modified" in ask("pieces", "runs", *old).out
    failed = ask("pieces", "runs", *bad).out
    assert "failed: no such feed; run again in" in failed
    assert ask("pieces", "runs", *bad, "--json").json["items"][-1]["outcome"] == "failed"


@pytest.mark.covers("N480")
def test_a_failure_tells_what_followed_it(ask, run, add):
    """An update that failed and was run again says how much later; how many failed in a row stands beneath."""
    piece = add("twice", '{"broken": true}')
    first = ask("pieces", "run", *piece, "--no-wait", "--json").json["run_id"]
    assert run("pieces", "run", *piece).code == 1
    assert run("pieces", "run", *piece).code == 1
    out = ask("pieces", "runs", *piece).out
    (line,) = [line for line in out.splitlines() if first in line]
    assert line.endswith("s later")
    assert "times in a row; it never succeeded" in out


@pytest.mark.covers("N481")
def test_log_lines_are_shown(ask, add):
    """`pieces logs` shows the lines of the latest updates with time, level, message and fields."""
    piece = add("lines", '{"url": "https://hn.example"}')
    ask("pieces", "run", *piece)
    head, line = ask("pieces", "logs", *piece).out.splitlines()
    assert head.startswith("run ")
    assert ": success, " in head
    assert line.split()[1:] == ["info", "read", "url=https://hn.example"]
    (told,) = ask("pieces", "logs", *piece, "--json").json["items"]
    assert (told["level"], told["message"], told["fields"]) == ("info", "read", {"url": "https://hn.example"})
    silent = add("silent", '{"old": true}')
    ask("pieces", "run", *silent)
    assert "nothing was logged" in ask("pieces", "logs", *silent).out


@pytest.mark.covers("N481")
def test_log_lines_are_followed(ask, add, started):
    """`pieces logs --follow` goes on with what is logged from then on, until Ctrl-C."""
    piece = add("followed", '{"url": "x"}')
    ask("pieces", "run", *piece)
    following = started("pieces", "logs", *piece, "-f")
    first = [following.stdout.readline() for _ in range(2)]
    assert first[0], following.stderr.read()
    ask("pieces", "run", *piece)
    second = [following.stdout.readline() for _ in range(2)]
    assert first[0].split(":")[0] != second[0].split(":")[0]
    assert all("read  url=x" in lines[1] for lines in (first, second))
    following.send_signal(signal.SIGINT)
    assert following.wait() == 130


@pytest.mark.covers("N482")
def test_nobody_waits_in_silence(ask, add, started):
    """`pieces run` says after a moment what it waits for; Ctrl-C ends the waiting, not the update."""
    piece = add("slow", '{"slow": true}')
    waiting = started("pieces", "run", *piece)
    said = waiting.stderr.readline()
    assert said.startswith("piecework: waiting for reports/slow (run ")
    assert "Ctrl-C ends the waiting" in said
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait() == 130
    run_id = ask("pieces", "run", *piece, "--no-wait", "--json").json["run_id"]
    assert run_id in said
    assert "is running" in ask("pieces", "runs", *piece).out
    ask("runs", "abort", run_id)


@pytest.mark.covers("N482")
def test_without_a_node_nobody_waits(run, tmp_path):
    """Where no node has the file, `pieces run` says at once how to start one."""
    answer = run("pieces", "run", "acme", "hn", "--store", f"sqlite:///{tmp_path}/store.db")
    assert (answer.code, answer.err.count("\n")) == (1, 1)
    assert "piecework serve MODULE:APP" in answer.err


@pytest.mark.covers("N484")
def test_lists_fit_a_terminal(ask, add, terminal):
    """On a terminal of 80 columns a run and a piece take two lines, or a few where a failure is told."""
    ask("pieces", "run", *add("narrow", '{"url": "x"}', space="narrow"))
    terminal(80)
    lines = ask("runs", "list", "--space", "narrow").out.splitlines()
    assert len(lines) in {6, 8}  # what was asked for is the first update, or another one where that has ended already
    assert len(ask("pieces", "list", "--space", "narrow").out.splitlines()) == 2
    assert max(map(len, lines[2:])) <= 80
    assert "run" in lines[0]
    assert "created" in lines[1]
    assert lines[4].split()[1:] == ["success", "piece", "feed", "narrow"]
    assert lines[5].startswith("  narrow  ")
    terminal(160)
    assert len(ask("runs", "list", "--space", "narrow").out.splitlines()) == len(lines) // 2


def test_nothing_is_behind_the_last_update(ask, add):
    """A cursor with nothing behind it is not told as if the piece had never been updated."""
    behind = add("behind", '{"url": "x"}')
    ask("pieces", "run", *behind)
    out = ask("pieces", "runs", *behind, "--cursor", "0").out
    assert "reports/behind has no updates behind 0" in out
    assert "has not been updated" not in out


def test_an_error_that_is_over_is_not_told_as_one(ask, run, add):
    """A piece that succeeds again is listed without the error that it had before."""
    over = add("over", '{"broken": true}', space="over")
    assert run("pieces", "run", *over).code == 1
    assert "no such feed" in ask("pieces", "list", "--space", "over").out
    add("over", '{"url": "x"}', space="over")
    ask("pieces", "run", *over)
    assert "no such feed" not in ask("pieces", "list", "--space", "over").out
    assert "last error " in ask("pieces", "show", *over).out


@pytest.mark.parametrize("command", ["runs", "logs"])
def test_an_unknown_piece(fail, add, command):
    """A piece that is not there is one clear line with near names."""
    add("known", "{}")
    assert "did you mean 'known'" in fail("pieces", command, "reports", "knwn")


def test_an_interval_that_is_no_number(fail):
    """An interval that is no number is refused, by its name, before anybody is asked."""
    assert "--every-seconds" in fail("pieces", "add", "acme", "hn", "--integration", "feed", "--every-seconds", "nan")


@pytest.mark.covers("N480")
def test_a_piece_is_paused_and_resumed(ask, add):
    """`pieces pause` and `resume` say whether anything changed; the reason is told to whoever looks."""
    piece = add("paused", '{"url": "x"}')
    ask("pieces", "run", *piece)
    assert "is paused" in ask("pieces", "pause", *piece, "--reason", "moved house").out
    assert "was paused already" in ask("pieces", "pause", *piece).out
    assert "reports/paused is paused: moved house" in ask("pieces", "runs", *piece).out
    assert ask("pieces", "resume", *piece, "--json").json == {"changed": True}
    assert ask("pieces", "show", *piece, "--json").json["desired"] == "enabled"


@pytest.mark.covers("N480")
def test_a_piece_is_removed(ask, fail, add):
    """`pieces remove` ends a piece: it is not there any more, and can be added anew."""
    piece = add("removed", '{"url": "x"}')
    assert "is removed" in ask("pieces", "remove", *piece).out
    assert "removed" in fail("pieces", "show", *piece)
    assert ask("pieces", "add", *piece, "--integration", "feed", "--json").json["added"] is True


@pytest.mark.covers("N483")
def test_spaces_are_shown(ask, fail, add):
    """`spaces list` and `show` tell state, process, memory and restarts, and how each limit is enforced here."""
    ask("pieces", "run", *add("hn", '{"url": "x"}', space="shown"))
    (item,) = [one for one in ask("spaces", "list", "--json").json["items"] if one["space"] == "shown"]
    told = ask("spaces", "show", "shown", "--json").json
    assert (told["pid"], told["restarts"]) == (item["pid"], 0)
    assert set(told["limits"]) == {
        *("memory", "cpu", "processes", "files", "wall", "folder", "filesystem", "syscalls"),
    }
    out = ask("spaces", "show", "shown").out
    assert f"process {told['pid']}" in out
    assert "how its limits are enforced here:" in out
    assert "shown" in ask("spaces", "list").out
    assert "did you mean 'shown'" in fail("spaces", "show", "shwn")


@pytest.mark.covers("N515")
def test_pieces_are_listed_by_how_they_stand(ask, run, add):
    """`pieces list --status` lists those alone that stand so."""
    ask("pieces", "run", *add("fine", '{"url": "x"}', space="stand"))
    assert run("pieces", "run", *add("ill", '{"broken": true}', space="stand")).code == 1
    ask("pieces", "pause", *add("off", '{"url": "x"}', space="stand"))

    def listed(status):
        page = ask("pieces", "list", "--space", "stand", "--status", status, "--json").json
        return [piece["piece_id"] for piece in page["items"]]

    assert (listed("idle"), listed("backoff"), listed("paused")) == (["fine"], ["ill"], ["off"])
    assert ask("pieces", "list", "--space", "stand", "--status", "half-open").out == "no pieces\n"


@pytest.mark.covers("N514")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("pause", "acme", "hn", "--reason", "\udcff"), "pieces.pause.reason has a lone surrogate"),
        (("list", "--space", "\udcff"), "pieces.list.space has a lone surrogate"),
        (("add", "acme", "hn", "--integration", "feed", "--config", '{"a": 1e999}'), "pieces.add.config.a is inf"),
        (
            ("add", "acme", "hn", "--integration", "feed", "--config", f'{{"a": {10**30}}}'),
            "config.a is an integer beyond",
        ),
    ],
)
def test_what_cannot_be_asked_is_told_by_its_name(fail, words, told):
    """What no node can be asked is refused before it is sent, by the name of what it stands in."""
    assert told in fail("pieces", *words)
