"""What is drawn in the histories of `test_machine.py`: at random, from numbers that Hypothesis draws.

Its own strategies, nested as deep as these would be, give mostly small and equal things within a hundred histories.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from container_model import KEYS, Spec

from piecework.container.scope import Scope
from piecework.container.state import DELETE

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

FORMS = (
    *("bare", "bare_generator", "bare_async_generator", "plain", "generator"),
    *("awaited", "async_generator", "gated", "gated", "stream"),
)
# What a commit changes; by what there is, so that most of them change something.
CHANGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "n": lambda data: {"n": (data["n"] + 1) % 3},
    "c": lambda data: {"m": {"c": (data["m"]["c"] + 1) % 3}},
    "l": lambda data: {"m": {"l": [2] if data["m"]["l"] == [1] else [1]}},
    "longer": lambda data: {"m": {"l": [*data["m"]["l"][:2], 1]}},
    "z": lambda data: {"z": DELETE if "z" in data else 1},
    "y": lambda data: {"y": data.get("y", 0) + 1},
    "same": lambda data: {"n": data["n"], "m": {"l": data["m"]["l"]}},
    "nothing": lambda _data: {},
}
EVENTS = ("value", "value", "value", "value", "error", "end")


def a_spec(dice: Random, key: str | None = None, declared: Scope | None = None) -> Spec:
    """A service; what it needs comes before it in the alphabet."""
    key = dice.choice(KEYS) if key is None else key
    hows = ((one, dice.choice((None, None, "parameter", "parameter", "require", "resolve"))) for one in KEYS)
    return Spec(
        key,
        dice.choice(FORMS),
        needs=tuple((one, how) for one, how in hows if how is not None),
        selects=dice.choice(((0,), (), (2,), (1, 3), (4,), (5,), (6,), (7, 0))),
        late=dice.random() < 0.5,
        transient=dice.random() < 0.2,
        family=dice.choice((0, 0, 0, 4)),
        limit=dice.randint(1, 3),
        exclusive=dice.random() < 0.25,
        eager=dice.random() < 0.2,
        retries=dice.choice((0, 0, 0, 1)),
        closer=dice.choice((None, None, None, None, None, "raises", "hangs")),
        initial=dice.random() < 0.5,
        declared=declared,
    )


def a_layout(dice: Random) -> list[tuple[int, Spec]]:
    """A service for each key; what comes later in the alphabet lives in the same container or one further down."""
    places = sorted(dice.choice((0, 1, 3, 3, 3, 4)) for _ in KEYS)
    return [(place, a_spec(dice, key)) for place, key in zip(places, KEYS, strict=True)]


def pick(dice: Random) -> int:
    """A number to choose something by."""
    return dice.randrange(24)


def flag(dice: Random) -> bool:
    """Yes or no."""
    return dice.random() < 0.5


# What may be done, how often among others, and what it takes.
ACTIONS: dict[str, tuple[int, Callable[[Random], tuple[Any, ...]]]] = {
    "ask": (7, lambda dice: (pick(dice), dice.randrange(4), dice.choice((1, 1, 1, 3)), dice.choice("rs"))),
    "ask_anywhere": (1, lambda dice: (pick(dice), dice.choice(KEYS), dice.randrange(4))),
    "ask_for_all": (4, lambda dice: (dice.randint(2, 4),)),
    "commit": (7, lambda dice: (pick(dice), dice.choices(tuple(CHANGES), k=dice.choice((1, 1, 2))), flag(dice))),
    "invalidate": (3, lambda dice: (pick(dice), dice.randrange(4), flag(dice))),
    "stream": (4, lambda dice: (pick(dice), dice.choice(EVENTS))),
    "open_gates": (5, lambda dice: ([pick(dice) for _ in range(dice.randint(1, 3))],)),
    "cancel": (1, lambda dice: (pick(dice), flag(dice))),
    "pass_time": (1, lambda dice: (dice.choice((0.05, 5.0)),)),
    "fail": (1, lambda dice: (dice.choice(KEYS), dice.randint(1, 2))),
    "ready": (1, lambda dice: (pick(dice),)),
    "watch": (2, lambda dice: (pick(dice), dice.randrange(4))),
    "unsubscribe": (1, lambda dice: (pick(dice),)),
    "override": (1, lambda dice: (pick(dice),)),
    "restore": (1, lambda dice: (pick(dice), pick(dice))),
    "register": (1, lambda dice: (pick(dice), a_spec(dice))),
    "declare": (1, lambda dice: (dice.randrange(2), a_spec(dice, declared=dice.choice(tuple(Scope))))),
    "unregister": (1, lambda dice: (pick(dice),)),
    "open_another": (1, lambda dice: ([pick(dice) for _ in range(dice.randrange(3))], pick(dice), flag(dice))),
    "extend": (1, lambda dice: (pick(dice), pick(dice))),
    "dispose": (1, lambda dice: (pick(dice), flag(dice))),
}


def an_action(dice: Random) -> tuple[Any, ...]:
    """One thing to do, with what it takes."""
    name = dice.choices(tuple(ACTIONS), weights=[weight for weight, _ in ACTIONS.values()])[0]
    return (name, *ACTIONS[name][1](dice))
