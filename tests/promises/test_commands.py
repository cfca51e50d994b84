"""Commands: functions with a name, in a fork of the caller's workspace."""

from __future__ import annotations

from datetime import date

import pytest

from piecework.errors import DuplicateKeyError, NotFoundError, ValidationError

pytestmark = pytest.mark.engines("sqlite")


@pytest.mark.covers("W92")
async def test_a_command_has_params_of_its_own(make_app):
    """A command runs in a fork: its own params, the caller's run services and user; the caller's params stay."""
    app = make_app()

    @app.service(scope="run")
    def notes():
        return []

    @app.command("note")
    async def note(ws, text: str):
        ws.notes.append(text)
        return ws.params, ws.user, ws.parent is not None

    async with app, app.workspace(user="ada", params={"page": 1}) as ws:
        assert await ws.run_command("note", text="one") == ({"text": "one"}, "ada", True)
        await ws.run_command("note", text="two")
        assert (ws.notes, ws.params, ws.closed) == (["one", "two"], {"page": 1}, False)


@pytest.mark.covers("W92")
async def test_a_commands_transient_services_end_with_it(make_app):
    """What a command alone has is closed with its fork, what it shares with the caller stays open."""
    app, closed = make_app(), []

    @app.service(scope="run")
    def shared():
        yield "shared"
        closed.append("shared")

    @app.service(scope="transient")
    def own():
        yield "own"
        closed.append("own")

    @app.command("look")
    def look(own, shared):
        return own, shared

    async with app, app.workspace() as ws:
        assert await ws.run_command("look") == ("own", "shared")
        assert closed == ["own"]
    assert closed == ["own", "shared"]


@pytest.mark.covers("W51")
async def test_commands_of_children_run_in_their_workspaces(make_app):
    """Two commands called in a child run in order, in forks of that child's workspace."""
    app, seen = make_app(), []

    @app.command("step")
    async def step(ws, user_id: int, name: str):
        seen.append((user_id, name, ws.root.id))

    async def process(ws, user_id):
        await ws.run_command("step", user_id=user_id, name="report")
        await ws.run_command("step", user_id=user_id, name="metrics")
        return ws.id

    async with app:
        ids = await app.map_in_workspaces(process, [1, 2, 3])
    for user_id, workspace_id in zip([1, 2, 3], ids, strict=True):
        mine = [entry[1:] for entry in seen if entry[0] == user_id]
        assert mine == [("report", workspace_id), ("metrics", workspace_id)]


@pytest.mark.covers("W81")
async def test_a_command_without_a_workspace(make_app):
    """`app.run_command` calls a command in a fresh workspace, sync or async, and gives its value or its error."""
    app = make_app()

    @app.command("double")
    def double(n: int):
        if n < 0:
            raise LookupError(n)
        return 2 * n

    async with app:
        assert await app.run_command("double", n=4) == 8
        with pytest.raises(LookupError):
            await app.run_command("double", n=-1)


@pytest.mark.covers("N160")
async def test_params_are_converted_by_their_annotations(make_app):
    """What a parameter's annotation wants is made of what was given; services and defaults fill the rest."""
    app = make_app(config={"site": "News"})

    @app.command("report")
    async def report(ws, day: date, ids: list[int], deep: bool = False, note=None):
        return ws.params, day, ids, deep, note

    async with app:
        params, *values = await app.run_command("report", day="2026-03-29", ids=["1", 2], note=("x",))
    assert values == [date(2026, 3, 29), [1, 2], False, ("x",)]
    assert params == {"day": date(2026, 3, 29), "ids": [1, 2], "note": ("x",)}


@pytest.mark.covers("N160")
async def test_all_that_is_wrong_is_told_at_once(make_app):
    """A call with unknown, missing and wrong params is refused with the reason of each, and calls nothing."""
    app, called = make_app(), []

    @app.command("report")
    async def report(ws, user_id: int, limit: int = 5):
        called.append(user_id)

    async with app:
        with pytest.raises(ValidationError) as caught:
            await app.run_command("report", userid=7, limit="many")
        assert set(caught.value.fields) == {"userid", "limit", "user_id"}
        assert "'user_id'" in caught.value.fields["userid"]
        assert "int" in caught.value.fields["limit"]
        with pytest.raises(NotFoundError, match="did you mean 'report'"):
            await app.run_command("raport")
    assert called == []


@pytest.mark.covers("N160")
async def test_nobody_gives_a_service(make_app):
    """What a service fills is no param: a caller that gives it is refused."""
    app = make_app()

    @app.command("look")
    async def look(bot, name="x"):
        return name

    async with app:
        assert await app.run_command("look") == "x"
        with pytest.raises(ValidationError, match="bot is unknown"):
            await app.run_command("look", bot=1)


@pytest.mark.covers("N160")
async def test_a_params_name_may_be_name(make_app):
    """A command's own name is given by place only, so a param of any name can be given."""
    app = make_app()

    @app.command("greet")
    async def greet(ws, name: str, self_: str = ""):
        return f"Hello {name}"

    async with app, app.workspace() as ws:
        assert await ws.run_command("greet", name="Ada") == "Hello Ada"
        assert await app.run_command("greet", name="Ada") == "Hello Ada"


async def test_command_names_are_unique(make_app):
    """A second command of one name is refused, and so is one whose arguments nobody could name."""
    app = make_app()
    app.command("x")(lambda: None)
    with pytest.raises(DuplicateKeyError):
        app.command("x")(lambda: None)
    with pytest.raises(ValidationError, match="by place"):
        app.command("y")(lambda a, /: None)
