from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.services.delivery import Decision, MailRefused, after_attempt

WAITS = (5.0, 30.0)
DONE = Decision("done")
REFUSED = Decision("failed", code="MAIL_REFUSED")
UNKNOWN = Decision("failed", code="DELIVERY_UNKNOWN")


@pytest.mark.parametrize(
    ("result", "refusals", "unknowns", "waits", "expected"),
    [
        ("sent", 0, 0, WAITS, DONE),
        ("sent", 2, 1, WAITS, DONE),
        ("refused", 1, 0, WAITS, Decision("retry", seconds=5)),
        ("refused", 2, 0, WAITS, Decision("retry", seconds=30)),
        ("refused", 3, 0, WAITS, REFUSED),
        ("refused", 1, 0, (), REFUSED),
        ("refused", 1, 1, WAITS, Decision("retry", seconds=5)),
        ("refused", 3, 1, WAITS, UNKNOWN),
        ("permanent", 0, 0, WAITS, REFUSED),
        ("permanent", 0, 1, WAITS, UNKNOWN),
        ("unknown", 0, 1, WAITS, Decision("retry", seconds=5)),
        ("unknown", 2, 1, WAITS, Decision("retry", seconds=5)),
        ("unknown", 0, 1, (), Decision("retry", seconds=0)),
        ("unknown", 0, 2, WAITS, UNKNOWN),
    ],
)
def test_what_follows_an_attempt(result, refusals, unknowns, waits, expected):
    """Refusals go through the waits and then fail; an unknown outcome gets exactly one more attempt."""
    assert after_attempt(result, refusals=refusals, unknowns=unknowns, retry_seconds=waits) == expected


@given(
    st.lists(st.sampled_from(["refused", "permanent", "unknown"]), max_size=12).map(lambda some: [*some, "sent"]),
    st.lists(st.floats(0, 1e6), max_size=4).map(tuple),
)
def test_every_mail_comes_to_an_end(results, waits):
    """Whatever the server does, a mail ends, is handed over at most twice unknowingly, and failed never means sent."""
    refusals = unknowns = attempts = 0
    for result in results:
        attempts += 1
        refusals += result == "refused"
        unknowns += result == "unknown"
        decision = after_attempt(result, refusals=refusals, unknowns=unknowns, retry_seconds=waits)
        if decision.verdict != "retry":
            break
        assert decision.seconds >= 0
    assert decision.verdict == ("done" if result == "sent" else "failed")
    assert attempts <= len(waits) + 3
    assert unknowns <= 2
    if decision.verdict == "failed":
        assert decision.code == ("DELIVERY_UNKNOWN" if unknowns else "MAIL_REFUSED")


def test_a_refusal_survives_pickling():
    """A refusal is the same after it crossed a process."""
    copy = pickle.loads(pickle.dumps(MailRefused("550 no", permanent=True)))
    assert (copy.error, copy.permanent, copy.code) == ("550 no", True, "MAIL_REFUSED")
