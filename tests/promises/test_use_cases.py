"""What workspaces are for, as scenes: a long report, files of the same name, and what needs no workspace of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROWS = 100_000


@pytest.fixture
async def plant(users_app, engine, tmp_path):
    """An app with a hundred thousand readings, and a report file that is a resource of whoever writes it."""
    numbers = f"generate_series(1, {ROWS}) as n"
    if engine == "sqlite":
        numbers = f"(with recursive a(n) as (select 1 union all select n + 1 from a where n < {ROWS}) select n from a)"
    async with users_app.workspace() as ws:
        await ws.database.run("create table readings (id integer primary key, value integer not null)")
        await ws.database.run(f"insert into readings select n, n * 2 from {numbers}")

    @users_app.service(scope="run")
    def unfinished():
        path = tmp_path / "report.csv.unfinished"
        with path.open("w") as file:
            yield file
        path.unlink(missing_ok=True)

    return users_app


async def report(ws, path, unfinished, fail_at=None):
    """Writes all readings to a file that is there when it is whole."""
    lines = []
    async for reading in ws.database.readings.iterate(1000):
        lines.append(f"{reading.id};{reading.value}\n")
        if len(lines) == 1000:
            await asyncio.to_thread(unfinished.writelines, lines)
            lines.clear()
        if reading.id == fail_at:
            raise LookupError(reading.id)
    unfinished.flush()
    path.with_name(path.name + ".unfinished").rename(path)


@pytest.mark.covers("W69")
async def test_a_long_report_holds_nobody_up(plant, tmp_path):
    """A child writes 100,000 rows to a file in batches; meanwhile its parent is answered, again and again."""
    path, answers = tmp_path / "report.csv", 0
    async with plant.workspace() as ws:
        child = ws.spawn_in_new_workspace(report, path)
        while not child.done:
            assert (await ws.database.readings.where(id=answers + 1).first()).value == answers * 2 + 2
            answers += 1
        await child.result()
    lines = path.read_text().splitlines()
    assert (len(lines), lines[0], lines[-1]) == (ROWS, "1;2", f"{ROWS};{ROWS * 2}")
    assert answers > 10


@pytest.mark.covers("W69")
@pytest.mark.engines("sqlite")
async def test_a_report_that_fails_leaves_no_file(plant, tmp_path):
    """A report that fails in the middle leaves neither a whole file nor a part of one."""
    with pytest.raises(LookupError, match="50500"):
        await plant.run_in_new_workspace(report, tmp_path / "report.csv", fail_at=50_500)
    assert list(tmp_path.glob("report.csv*")) == []


@pytest.mark.covers("W73", "W70")
@pytest.mark.engines("sqlite")
async def test_files_of_one_name_do_not_meet(users_app):
    """Children that write a file of the same name at once each have their own, and it is gone with its workspace."""
    both, folders = asyncio.Barrier(2), set()

    @users_app.service(scope="run")
    def folder():
        with TemporaryDirectory() as name:
            folders.add(Path(name))
            yield Path(name)

    async def work(ws, text, folder):
        picture = folder / "picture.png"
        picture.write_text(text)
        await both.wait()
        return picture.read_text()

    assert await users_app.map_in_workspaces(work, ["mine", "yours"]) == ["mine", "yours"]
    assert [folder.exists() for folder in folders] == [False, False]


@pytest.mark.covers("W97")
@pytest.mark.engines("sqlite")
async def test_a_simple_query_needs_no_child(users_app):
    """A query in the current workspace opens no other one, and finds what it would find there."""
    opened = []
    async with users_app.workspace() as ws:
        ada = await ws.database.users.insert(name="Ada")
        users_app.workspaces.on("created", opened.append)
        here = await ws.database.users.where(id=ada.id).first()
        assert len(opened) == 0
        there = await ws.run_in_new_workspace(lambda ws: ws.database.users.where(id=ada.id).first())
        assert len(opened) == 1
        assert here.as_dict() == there.as_dict()
