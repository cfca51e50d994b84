from __future__ import annotations

import pytest

from contracts.processes import Process


@pytest.fixture
def process():
    """Starts children; none is left when the test ends."""
    started = []

    def start(program, *arguments):
        started.append(Process(program, *arguments))
        return started[-1]

    yield start
    for child in started:
        child.end()
