"""What an error has to tell: its code, which thing it is about, and what to do."""

from __future__ import annotations

import importlib.util
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).parents[2] / "docs"


def docs_script(name: str) -> Any:
    """One of the scripts that write parts of the documentation, as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(error: BaseException, cls: type[BaseException], remedy: str, *mentions: str, **data: Any) -> None:
    """Checks what an error tells.

    Args:
        error: What was raised.
        cls: Exactly this class.
        remedy: Stands in the message, or its parts around each `…` in this order.
        mentions: Stand in the message.
        data: Attributes of the error; their values stand in the message.
    """
    assert type(error) is cls, repr(error)
    text = str(error)
    assert {"code": getattr(cls, "code", None)} | data == {
        name: getattr(error, name, None) for name in ("code", *data)
    }, text
    for value in (*mentions, *data.values()):
        for part in value if isinstance(value, list) else [value]:
            assert (part.__name__ if isinstance(part, type) else str(part)) in text
    rest = text
    for part in remedy.split("…"):
        before, found, rest = rest.partition(part) if part else ("", part, rest)
        assert found == part, f"{remedy!r} is not in {text!r}, behind {before!r}"


@contextmanager
def told(cls: type[BaseException], remedy: str, *mentions: str, **data: Any) -> Iterator[None]:
    """Expects the body to raise an error that tells all of this; see `check`."""
    with pytest.raises(cls) as caught:
        yield
    check(caught.value, cls, remedy, *mentions, **data)
