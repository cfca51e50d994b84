"""`piecework store`: look at a store, upgrade it, check it, copy it. Needs no node, and minds none that is there."""

from __future__ import annotations

import asyncio
import shlex
import sys
from dataclasses import asdict
from pathlib import Path  # noqa: TC003 - the program reads the annotations
from typing import Annotated, Any

from cyclopts import App, Parameter

from piecework.cli.asking import AsJson, Where
from piecework.cli.telling import moment, say, show_fields, show_json, show_table
from piecework.errors import NotFoundError, ValidationError
from piecework.store.backup import back_up
from piecework.store.check import LIMIT, check
from piecework.store.info import describe
from piecework.store.looking import SqliteLook, looking_at
from piecework.store.opening import store_for

store = App("store", help="Look at a store, upgrade it, check it, copy it.")

_Where = Annotated[Where | None, Parameter(name="*")]
_NOT_HERE = 2


@store.command
async def info(url: str | None = None, /, *, as_json: AsJson = False, where: _Where = None) -> None:
    """Show what stands in a store; also while its node works.

    Args:
        url: The store (sqlite:///FILE or postgresql://…); default as of the other commands.
        as_json: Print JSON.
        where: The store, named otherwise.
    """
    async with looking_at(_url(url, where)) as look:
        told = await describe(look)
    if as_json:
        show_json(told)
    else:
        _show(told)


@store.command
async def migrate(
    url: str | None = None, /, *, grant: str | None = None, as_json: AsJson = False, where: _Where = None
) -> None:
    """Make a store, or bring its schema up to date.

    Args:
        url: The store (sqlite:///FILE or postgresql://…); default as of the other commands.
        grant: Allow this role of PostgreSQL to publish inside transactions of its own, and nothing else.
        as_json: Print JSON.
        where: The store, named otherwise.

    Raises:
        ValidationError: Roles are a matter of PostgreSQL's.
    """
    address = _url(url, where)
    if grant is not None and address.startswith("sqlite:"):
        raise ValidationError(f"{address} knows no roles: --grant is for stores on PostgreSQL")
    before = await _version(address)
    after = before
    if before is None or before[0] != before[1]:
        opened = store_for(address)
        await opened.open()
        await opened.close()
        after = await _version(address)
    assert after is not None
    if grant is not None:
        from piecework.store.granting import grant_publishing

        await grant_publishing(address, grant)
    version = after[0]
    if as_json:
        show_json({"from_version": before and before[0], "schema_version": version, "granted": grant})
        return
    if before is None:
        say(f"made, schema version {version}")
    elif before == after:
        say(f"schema version {version}, the newest there is")
    else:
        say(f"upgraded from schema version {before[0]} to {version}")
    if grant is not None:
        say(f"role {grant} may publish inside its own transactions")


@store.command(name="check")
async def check_store(url: str | None = None, /, *, as_json: AsJson = False, where: _Where = None) -> int:
    """Look for contradictions in a store; also while its node works.

    Args:
        url: The store (sqlite:///FILE or postgresql://…); default as of the other commands.
        as_json: Print JSON.
        where: The store, named otherwise.

    Returns:
        1 when there are any.
    """
    async with looking_at(_url(url, where)) as look:
        look.require_newest()
        found = await check(look)
    if as_json:
        show_json({"items": [asdict(finding) for finding in found], "next_cursor": None})
    else:
        rows = [(finding.rule, finding.subject, finding.message) for finding in found]
        show_table(("rule", "what", "found"), rows, nothing="no contradiction found")
        if found:
            say(
                f"{len(found)} contradictions (at most {LIMIT} of a rule are shown): keep a copy of the store as it is "
                "and report them"
            )
    return int(bool(found))


@store.command
async def backup(destination: Path, /, *, as_json: AsJson = False, where: _Where = None) -> int:
    """Copy a store into a new file; also while its node works. Of one on PostgreSQL, tell the command that does it.

    Args:
        destination: The new file.
        as_json: Print JSON.
        where: Which store.

    Returns:
        2 on PostgreSQL, where nothing was copied.
    """
    async with looking_at((where or Where()).url()) as look:
        command = look.dump_command(destination)
        if command is not None:
            say(shlex.join(command))
            sys.stderr.write("piecework: nothing was copied: PostgreSQL does that itself, by this command\n")
            return _NOT_HERE
        assert isinstance(look, SqliteLook)
        path, size = await asyncio.to_thread(back_up, look, destination)
        if as_json:
            show_json({"path": str(path), "size_bytes": size, "schema_version": look.version})
        else:
            say(f"{look.path} is copied to {path}, {_size(size)}")
    return 0


def _url(url: str | None, where: Where | None) -> str:
    return url or (where or Where()).url()


async def _version(url: str) -> tuple[int, int] | None:
    """The store's schema version and the newest one; None when there is no store yet."""
    try:
        async with looking_at(url) as look:
            return look.version, look.newest
    except NotFoundError:
        return None


def _show(told: dict[str, Any]) -> None:
    version, newest = told["schema_version"], told["newest_schema_version"]
    oldest = told["oldest_open_run"]
    show_fields(
        [
            ("store", told["url"]),
            ("engine", f"{told['engine']} {told['engine_version']}"),
            ("schema", f"version {version}" + ("" if version == newest else f", the newest is {newest}: migrate it")),
            ("size", _size(told["size_bytes"])),
            ("log", None if told["wal_bytes"] is None else _size(told["wal_bytes"])),
            ("node", None if told["node_pid"] is None else f"process {told['node_pid']}"),
            ("oldest open run", oldest and f"{oldest['run_id']}, {oldest['status']}, {moment(oldest['created_at'])}"),
        ]
    )
    if told["tables"] is None:
        return
    say("")
    show_table(("table", "rows"), told["tables"].items(), nothing="no tables")
    say("")
    rows = [(item["kind"], item["status"], item["count"]) for item in told["runs"]]
    show_table(("runs", "status", "count"), rows, nothing="no runs")
    say("")
    nodes = [
        (node["node_id"], node["pid"], node["host"], moment(node["started_at"]), moment(node["renewed_at"]))
        for node in told["nodes"]
    ]
    show_table(("node", "pid", "host", "started", "renewed"), nodes, nothing="no nodes")


def _size(count: int) -> str:
    for unit, width in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= width:
            return f"{count / width:.1f} {unit}"
    return f"{count} B"
