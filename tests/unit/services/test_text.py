from __future__ import annotations

import asyncio

import pytest

from piecework.errors import ValidationError
from piecework.services.text import render


async def test_lines_and_indents():
    """The first line has no break before it; an indent sets its lines in by four spaces; echo goes on."""

    def write(mail):
        mail.line("a")
        mail.line()
        mail.indent(lambda inner: inner.line("b").line("c"))
        mail.echo("!")

    assert await render(write) == "a\n\n    b\n    c!"


async def test_indents_nest():
    """An indent within an indent is set in twice."""
    text = await render(lambda mail: mail.indent(lambda one: one.line("a").indent(lambda two: two.line("b"))))
    assert text == "    a\n        b"


async def test_values_may_be_awaited():
    """Values that are awaitables are awaited one by one, in the order of the calls."""
    order = []

    async def value(name):
        await asyncio.sleep(0)
        order.append(name)
        return name

    text = await render(
        lambda mail: mail.line(value("a")).indent(lambda inner: inner.line(value("b"))).echo(value("c"))
    )
    assert (text, order) == ("a\n    bc", ["a", "b", "c"])


async def test_the_function_may_be_async():
    """A function that builds a text may be async."""

    async def write(mail):
        await asyncio.sleep(0)
        mail.line(1)

    assert await render(write) == "1"


async def test_a_text_may_be_given_or_returned():
    """A text may be given as it is, as an awaitable, or returned by the function."""

    async def later():
        return "x"

    assert [await render(source) for source in ("x", later(), lambda mail: "x")] == ["x", "x", "x"]


async def test_a_text_of_another_kind_is_refused():
    """What is neither text nor function is refused."""
    with pytest.raises(ValidationError, match="b'x'"):
        await render(b"x")


async def test_a_failure_is_raised_alone():
    """When a value fails its error is raised, and the values after it complain of nothing."""

    async def fail():
        raise KeyError("gone")

    async def never():
        raise AssertionError

    with pytest.raises(KeyError, match="gone"):
        await render(lambda mail: mail.line(fail()).line(never()))
