from __future__ import annotations

from piecework.space.breaker import Breaker


def test_each_failure_in_a_row_doubles_the_pause():
    """The next start waits half a second after the first failure, then twice as long each time, a minute at most."""
    breaker, now, pauses = Breaker(100, 600), 0.0, []
    for _ in range(9):
        breaker.failed(now, "it crashed")
        pauses.append(breaker.wait_seconds(now))
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert breaker.wait_seconds(now + 59) == 1
    assert not breaker.served()
    assert breaker.wait_seconds(now) == 0


def test_only_failures_within_the_window_open_it():
    """Failures open the breaker when there are enough within the window, runs that came back in between or not."""
    breaker = Breaker(3, 600)
    assert [breaker.failed(now, "") for now in (0, 300, 600, 901)] == [False, False, False, False]
    breaker.served()
    assert breaker.failed(902, "the last") is True
    assert (breaker.failed(903, "again"), breaker.broken, breaker.reason) == (False, True, "again")


def test_probes_come_ever_more_seldom():
    """A broken space is tried after a minute, then after twice as long each time, an hour at most."""
    breaker, pauses = Breaker(1, 600), []
    for _ in range(8):
        breaker.failed(0, "")
        pauses.append(breaker.wait_seconds(0))
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    breaker.probe()
    assert (breaker.wait_seconds(0), breaker.broken) == (0, True)


def test_what_a_run_answers_for_opens_nothing():
    """Crashes that are charged put the next start off and open nothing; an open breaker they do not lengthen."""
    breaker = Breaker(2, 600)
    for _ in range(5):
        assert not breaker.failed(0, "", charged=True)
    assert breaker.wait_seconds(0) == 8
    breaker.failed(0, "")
    assert breaker.failed(0, "")
    breaker.failed(0, "", charged=True)
    assert breaker.wait_seconds(0) == 60
    assert (breaker.served(), breaker.broken, breaker.reason, breaker.wait_seconds(0)) == (True, False, None, 0)
