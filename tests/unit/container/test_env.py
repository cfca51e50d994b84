from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from piecework.container.env import EnvService
from piecework.errors import InvalidStateError


def test_the_nearest_layer_wins() -> None:
    """A variable comes from the workflow's layer, then the app's, else it is None."""
    env = EnvService({"LIMIT": "900"}, {"LIMIT": "500", "SITE": "News"})
    assert [env.get(key) for key in ("LIMIT", "SITE", "HOME")] == ["900", "News", None]


def test_none_counts_as_not_set() -> None:
    """A key that maps to None, and a layer that was not given, are passed over."""
    assert EnvService(None, {"LIMIT": None}, {"LIMIT": "5"}).get("LIMIT") == "5"


def test_layers_are_copied() -> None:
    """Changing a mapping later does not change the service."""
    layer = {"LIMIT": "500"}
    env = EnvService(layer)
    layer["LIMIT"] = "1"
    assert env.get("LIMIT") == "500"


def test_only_get_reads() -> None:
    """Reading by attribute or item fails with a hint."""
    env: Any = EnvService({"KEY": "1"})
    with pytest.raises(AttributeError, match=r"env\.get\('KEY'\)"):
        _ = env.KEY
    with pytest.raises(TypeError, match=r"env\.get\('KEY'\)"):
        _ = env["KEY"]


@pytest.mark.parametrize(
    "change",
    [
        lambda env: setattr(env, "KEY", "2"),
        lambda env: env.__setitem__("KEY", "2"),
        lambda env: delattr(env, "KEY"),
        lambda env: env.__delitem__("KEY"),
    ],
)
def test_it_is_read_only(change: Any) -> None:
    """Assigning and deleting are refused."""
    env = EnvService({"KEY": "1"})
    with pytest.raises(InvalidStateError, match="read-only"):
        change(env)
    assert env.get("KEY") == "1"


def test_values_are_in_no_output() -> None:
    """What is told of the env service, in logs, errors and dumps, has no values in it."""
    env = EnvService({"TOKEN": "s3cret"})
    told = [repr(env), str(env), f"{env}", f"{env!r:.200}"]
    for wrong in (lambda: env.TOKEN, lambda: env["TOKEN"], lambda: pickle.dumps(env), lambda: copy.deepcopy(env)):
        with pytest.raises((AttributeError, TypeError, InvalidStateError)) as raised:
            wrong()
        told.append(str(raised.value))
    assert not any("s3cret" in text for text in told)
