"""Tenants side by side in one database: what the workspace of one reads and writes is its own."""

from __future__ import annotations

import asyncio

import pytest

from piecework.errors import DuplicateKeyError, InvalidStateError, NotFoundError, ValidationError


@pytest.fixture
async def shop(users_app, engine):
    """An app whose `mine` is the database of the workspace's tenant, with two tables of tenants and one of nobody's."""

    @users_app.service(scope="run")
    def mine(ctx, database):
        return database.scoped(tenant=ctx.workspace.space)

    key = "integer primary key" if engine == "sqlite" else "serial primary key"
    async with users_app.workspace() as ws:
        await ws.database.run(f"create table teams (id {key}, tenant text not null, name text unique)")
        await ws.database.run("create table joins (team_id integer references teams (id), note_id integer)")
        await ws.database.run(
            f"create table notes (id {key}, tenant text not null, body text, team_id integer references teams (id))"
        )
    return users_app


async def bodies(query):
    return [row.body for row in await query.all()]


@pytest.mark.covers("W72", "N206")
async def test_a_tenant_sees_and_changes_its_own_rows_alone(shop):
    """Two tenants at once: neither finds, counts, changes or removes a row of the other's, whatever it asks."""
    both = asyncio.Barrier(2)

    async def work(ws):
        notes = ws.mine.notes
        note = await notes.insert(body=f"of {ws.space}")
        assert note.tenant == ws.space
        await both.wait()
        assert await bodies(notes) == await bodies(notes.order_by("-id")) == [f"of {ws.space}"]
        assert [row.body async for row in notes.where(body__startswith="of").iterate()] == [f"of {ws.space}"]
        assert await notes.where(tenant=["a", "b"]).paginate(1, 10).count() == await notes.count() == 1
        assert await notes.where(id__ne=note.id).first() is None
        assert await notes.where(id__ne=note.id).update(body="stolen") == 0
        assert await notes.where(id__ne=note.id).delete() == 0
        await both.wait()
        await note.update(body=f"still of {ws.space}")

    async with shop.workspace() as ws:
        await asyncio.gather(*(ws.workspace(space=tenant).run(work) for tenant in "ab"))
        assert sorted(await bodies(ws.database.notes)) == ["still of a", "still of b"]


@pytest.mark.covers("N207")
async def test_no_row_leaves_its_tenant(shop):
    """A tenant's row cannot be given to another tenant: neither when it is inserted, nor later, nor by the row."""
    async with shop.workspace(space="a") as ws:
        note = await ws.mine.notes.insert(body="x", tenant="a")
        notes = ws.mine.notes
        for use in (notes.insert(tenant="b"), notes.update(tenant="b"), note.update(tenant="b")):
            with pytest.raises(ValidationError, match="scoped to tenant='a'"):
                await use
        await ws.database.notes.where(id=note.id).update(tenant="b")
        assert await note.delete() is False
        with pytest.raises(NotFoundError, match="not there any more"):
            await note.update(body="y")


@pytest.mark.covers("N207")
async def test_relations_end_at_the_tenants_border(shop):
    """A condition on a relation finds a tenant's own rows through its own rows, however many tables lie between."""
    async with shop.workspace() as ws:
        theirs = await ws.database.teams.insert(tenant="b", name="theirs")
        ours = await ws.database.teams.insert(tenant="a", name="ours")
        for team in (theirs, ours):
            await ws.database.notes.insert(tenant="a", body=team.name, team_id=team.id)
            await ws.database.joins.insert(team_id=team.id, note_id=1)
        await ws.database.notes.insert(tenant="b", body="secret", team_id=ours.id)
        mine = ws.database.scoped(tenant="a")
        assert await bodies(mine.notes.where(team__name=["ours", "theirs"])) == ["ours"]
        assert await mine.teams.where(notes__body="secret").count() == 0
        assert await mine.teams.where(joins__note_id=1, notes__body="ours").count() == 1
        assert await mine.notes.where(team__joins__team__notes__body="secret").count() == 0
        assert await mine.notes.where(team__joins__team__notes__body="ours").update(body="found") == 1
        assert await mine.notes.where(team__joins__team__notes__body="found").delete() == 1


@pytest.mark.covers("N207")
async def test_what_has_no_tenant_is_refused(shop):
    """A scope without a value, a table without its column, SQL text, and a scope against the scope are refused."""
    async with shop.workspace() as ws:
        with pytest.raises(ValidationError, match="tenant=None"):
            await ws.require("mine")
        for wrong in ({}, {"tenant": ["a", "b"]}):
            with pytest.raises(ValidationError, match="scoped"):
                ws.database.scoped(**wrong)
    async with shop.workspace(space="a") as ws:
        for use in (ws.mine.users.all(), ws.mine.users.insert(name="x"), ws.mine.users.delete()):
            with pytest.raises(NotFoundError, match="tenant"):
                await use
        with pytest.raises(InvalidStateError, match="SQL text"):
            await ws.mine.run("select * from notes")
        with pytest.raises(ValidationError, match="outside"):
            ws.mine.scoped(tenant="b")


@pytest.mark.covers("W72")
async def test_a_tenant_is_inherited_by_choice_alone(shop):
    """A child has the tenant of its parent only where that is said, and then its rows; without it there are none."""

    async def work(ws):
        return await bodies(ws.mine.notes)

    async with shop.workspace(space="a") as ws:
        async with ws.mine.transaction():
            await ws.mine.notes.insert(body="x")
        assert await ws.workspace(inherit=("space",)).run(work) == ["x"]
        assert await ws.workspace(inherit=("space",), space="b").run(work) == []
        with pytest.raises(ValidationError, match="tenant=None"):
            await ws.run_in_new_workspace(lambda mine: mine)


async def test_a_scope_is_part_of_the_transaction(shop):
    """A scoped database and the whole one are in the same transaction, and a taken key says so in both."""
    async with shop.workspace(space="a") as ws:

        async def undone():
            async with ws.database.transaction():
                await ws.mine.teams.insert(name="x")
                assert await ws.database.teams.count() == 1
                with pytest.raises(DuplicateKeyError):
                    await ws.database.scoped(tenant="b").teams.insert(name="x")
                assert await ws.mine.teams.insert_missing(name="x") is None
                raise LookupError

        with pytest.raises(LookupError):
            await undone()
        assert await ws.mine.teams.count() == 0
