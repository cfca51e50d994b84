from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piecework.container.scope import Scope, home, is_wider, parse, refusal
from piecework.errors import ValidationError

APP, WORKFLOW, RUN, TRANSIENT = Scope


@pytest.mark.parametrize(
    ("scope", "levels", "index"),
    [
        (APP, [APP], 0),
        (APP, [RUN, WORKFLOW, APP], 2),
        (WORKFLOW, [RUN, WORKFLOW, APP], 1),
        (RUN, [RUN, WORKFLOW, APP], 0),
        (RUN, [TRANSIENT, RUN, APP], 1),
        (TRANSIENT, [TRANSIENT, RUN, APP], 0),
        (TRANSIENT, [APP], 0),
        (None, [RUN, APP], 1),
        (RUN, [APP], None),
        (RUN, [WORKFLOW, APP], None),
        (WORKFLOW, [RUN, APP], None),
    ],
)
def test_home(scope: Scope | None, levels: list[Scope], index: int | None) -> None:
    """An instance lives in the container of its recipe's scope, or nowhere on this way."""
    assert home(scope, levels) == index


@given(st.sampled_from(Scope), st.sampled_from(Scope))
def test_scopes_are_in_one_order(one: Scope, other: Scope) -> None:
    """Of two scopes one is wider, unless they are the same."""
    assert is_wider(one, other) + is_wider(other, one) == (one is not other)


@given(st.sampled_from([APP, WORKFLOW, RUN]), st.lists(st.sampled_from(Scope), min_size=1))
def test_an_instance_never_lives_shorter_than_its_scope(scope: Scope, levels: list[Scope]) -> None:
    """The home of an instance is of its recipe's own scope."""
    index = home(scope, levels)
    assert index is None or levels[index] is scope


def test_an_unknown_scope_is_refused_with_the_four_names() -> None:
    """A scope that does not exist is refused; the message lists those that do."""
    with pytest.raises(ValidationError, match="app, workflow, run, transient"):
        parse("process")


def test_a_refusal_draws_the_chain_and_says_what_to_do() -> None:
    """The refusal of a narrower service names who needs it and the way out."""
    text = refusal("database", RUN, APP, ["mailer", "reports"])
    assert "mailer -> reports -> database" in text
    assert "give 'reports' scope run" in text
