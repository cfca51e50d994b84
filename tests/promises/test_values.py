"""Promises about values that no store can hold, at the doors to what is stored."""

from __future__ import annotations

import pytest

from piecework.errors import ValidationError

IMPOSSIBLE = ["\udcff", "a\0b", 10**30, None, 3, b"x", ["a"], float("nan")]

DOORS = {
    "space of get": ("space", lambda app, wrong: app.pieces.get(wrong, "p")),
    "space of space": ("space", lambda app, wrong: app.pieces.space(wrong)),
    "space of resume_space": ("space", lambda app, wrong: app.pieces.resume_space(wrong)),
    "get": ("piece_id", lambda app, wrong: app.pieces.get("acme", wrong)),
    "runs": ("piece_id", lambda app, wrong: app.pieces.runs("acme", wrong)),
    "run_now": ("piece_id", lambda app, wrong: app.pieces.run_now("acme", wrong)),
    "pause": ("piece_id", lambda app, wrong: app.pieces.pause("acme", wrong)),
    "resume": ("piece_id", lambda app, wrong: app.pieces.resume("acme", wrong)),
    "remove": ("piece_id", lambda app, wrong: app.pieces.remove("acme", wrong)),
    "until_ended": ("run_id", lambda app, wrong: app.pieces.until_ended("acme", wrong)),
    "enqueue": ("job", lambda app, wrong: app.enqueue(wrong, {})),
    "integration": ("integration", lambda app, wrong: app.pieces.register(space="a", piece_id="p", integration=wrong)),
}
FILTERS = ("space", "workflow", "kind")


@pytest.mark.covers("N528")
async def test_an_impossible_name_is_refused(app):
    """What no store can hold as an id, or is no text at all, is refused by its name, whoever asks about it."""
    for door, (what, ask) in DOORS.items():
        for wrong in IMPOSSIBLE:
            with pytest.raises(ValidationError) as refused:
                await ask(app, wrong)
            assert what in str(refused.value), (door, wrong)


@pytest.mark.covers("N528")
async def test_an_impossible_filter_is_refused(app):
    """What no store can look for is refused by its name before the store is asked."""
    for wrong in ("\udcff", "a\0b", 10**30):
        for what in FILTERS:
            with pytest.raises(ValidationError, match=what):
                await app.runtime.list_all_runs(**{what: wrong})
        with pytest.raises(ValidationError, match="space"):
            await app.pieces.list(space=wrong)


@pytest.mark.engines("sqlite")
@pytest.mark.covers("N528")
@pytest.mark.parametrize("limit", [0, -1, 10**30, "3", 2.5, True])
async def test_an_impossible_limit_is_refused(app, limit):
    """A limit is a whole number from 1 that a store can count to; arguments of a job are given by name."""
    for limited in (lambda: app.pieces.runs("acme", "p", limit=limit), lambda: app.runtime.list_all_runs(limit=limit)):
        with pytest.raises(ValidationError, match="limit has to be a whole number from 1"):
            await limited()


@pytest.mark.engines("sqlite")
@pytest.mark.covers("N528")
async def test_arguments_are_a_mapping(make_app):
    """Arguments of a job that are no mapping are refused, before anything is queued."""
    app = make_app()

    @app.job("tidy")
    async def tidy(room="hall"):
        return room

    async with app:
        for wrong in (*IMPOSSIBLE, "hall"):
            with pytest.raises(ValidationError, match="by name, as a mapping"):
                await app.enqueue("tidy", wrong)
        assert await app.runtime.list_all_runs() == []
