from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from piecework.cli import main
from piecework.process import linux

HERE = Path(__file__).parent
COMMAND = (sys.executable, "-c", "import sys; from piecework.cli import main; sys.exit(main())")


class Served:
    """A node in a process of its own: `piecework serve`."""

    def __init__(self, folder, *args, app="shop:app", store=None):
        self.store = store or f"sqlite:///{folder}/store.db"
        self.stderr = folder / "stderr"
        with self.stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [*COMMAND, "serve", app, "--store", self.store, *args],
                cwd=HERE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self.family = {}

    def line(self):
        """The next line of its standard output; "" when it has ended."""
        return self.process.stdout.readline()

    def signal(self, *numbers):
        """Sends signals, after a look at what it has started."""
        for pid in linux.descendants(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                self.family[pid] = os.pidfd_open(pid)
        for number in numbers:
            self.process.send_signal(number)

    def ended(self):
        """Its exit code; nothing that it had started is left."""
        code = self.process.wait(timeout=20)
        self.process.stdout.close()
        left = [pid for pid, descriptor in self.family.items() if not select.select([descriptor], [], [], 10)[0]]
        for descriptor in self.family.values():
            os.close(descriptor)
        assert not left
        return code

    def end(self):
        """Ends it in order."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            return self.ended()
        finally:
            self.process.kill()


@pytest.fixture(scope="session")
def command():
    """The words that start the command line in a process of its own."""
    return COMMAND


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A node that all tests of a file may ask."""
    served = Served(tmp_path_factory.mktemp("node"))
    try:
        ready = served.line()
        assert ready.startswith("ready "), served.stderr.read_text()
        yield served
    finally:
        code = served.end()
    assert code == 0, served.stderr.read_text()


@pytest.fixture
def serve(tmp_path):
    """Starts nodes that end with the test."""
    started = []

    def start(*args, **options):
        started.append(Served(tmp_path, *args, **options))
        return started[-1]

    yield start
    for served in started:
        if served.process.poll() is None:
            served.end()


class Answer:
    """What one command line came to."""

    def __init__(self, code, out, err):
        self.code = code
        self.out = out
        self.err = err

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def run(capsys, monkeypatch):
    """Carries out a command line in this process, without a store of its own."""
    for name in ("PIECEWORK_STORE", "PIECEWORK_APP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIECEWORK_CONNECT_TIMEOUT_SECONDS", "0")
    monkeypatch.setattr("piecework.cli.pieces._PATIENCE_SECONDS", 20)  # what is slow here is no news
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    logger, interval = logging.getLogger("piecework"), sys.getswitchinterval()
    before = (logger.handlers[:], logger.propagate, logger.level)

    def run(*words):
        code = main(words)
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    yield run
    # `serve` sets its process up for itself.
    structlog.reset_defaults()
    logger.handlers[:], logger.propagate, logger.level = before
    sys.setswitchinterval(interval)


@pytest.fixture
def ask(run, node, monkeypatch):
    """Carries out a command line that asks the node, and expects that it works."""
    monkeypatch.setenv("PIECEWORK_STORE", node.store)

    def ask(*words):
        answer = run(*words)
        assert (answer.code, answer.err) == (0, ""), answer.err
        return answer

    return ask


@pytest.fixture
def fail(run, node, monkeypatch):
    """Carries out a command line that asks the node, and expects exit code 1 and one line: its words."""
    monkeypatch.setenv("PIECEWORK_STORE", node.store)

    def fail(*words, code=1):
        answer = run(*words)
        assert answer.code == code, answer.out
        assert answer.err.startswith("piecework: ")
        assert answer.err.count("\n") == 1
        return answer.err

    return fail
