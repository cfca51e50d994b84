"""`piecework doctor`: what this machine, this installation and this store are fit for. Needs no server."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sqlite3
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

from cyclopts import Parameter

from piecework.cli.asking import AsJson, Where
from piecework.cli.telling import show_json, show_table
from piecework.config import Settings
from piecework.errors import AppImportError, NoNodeError, PieceworkError, StoreError
from piecework.importing import app_name, load_app
from piecework.process import limits, linux
from piecework.process.findings import of_import
from piecework.run.link import LinkClient
from piecework.services.database import Database
from piecework.services.outbox import counts
from piecework.store.info import describe as describe_store
from piecework.store.lockfile import read_note
from piecework.store.looking import looking_at
from piecework.store.migrate import inspect_sqlite
from piecework.store.sqlite import sqlite_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+).*;.*\bextra\s*==\s*['\"]([^'\"]+)['\"]")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: What.
        status: ok, warning (something is not there or not enforced) or failed.
        detail: What was found, and what to do about it.
    """

    name: str
    status: str
    detail: str


async def doctor(*, as_json: AsJson = False, where: Annotated[Where | None, Parameter(name="*")] = None) -> int:
    """Look at this machine, this installation, the store and the app, and say what is missing.

    Args:
        as_json: Print JSON.
        where: Which store and app.

    Returns:
        1 when something failed.
    """
    asked = where or Where()
    mode = linux.namespaces()
    findings = [
        *_machine(mode),
        *_limits(asked, mode),
        *_extras(),
        *_app(asked),
        *await _outbox(asked),
        *await _store(asked),
    ]
    if as_json:
        show_json({"items": [asdict(finding) for finding in findings], "next_cursor": None})
    else:
        rows = [(finding.name, finding.status, finding.detail) for finding in findings]
        show_table(("what", "status", "found"), rows, nothing="nothing was looked at")
    return int(any(finding.status == "failed" for finding in findings))


def _machine(mode: str) -> Iterator[Finding]:
    import piecework

    yield Finding("piecework", "ok", piecework.__version__)
    yield Finding("python", "ok", f"{platform.python_version()} ({sys.executable})")
    yield Finding("platform", "ok", platform.platform())
    yield Finding("sqlite", "ok", sqlite3.sqlite_version)
    pidfds, subreaper = hasattr(os, "pidfd_open"), linux.has_subreapers()
    detail = f"pidfd {_word(pidfds)}, prctl {_word(sys.platform == 'linux')}, subreaper {_word(subreaper)}"
    if linux.can_run_workers():
        lost = "; a worker's daemons outlive a kill of its keeper and zygote together" if mode == "session" else ""
        yield Finding("workers", "ok", f"{mode} mode: {detail}{lost}")
    else:
        yield Finding("workers", "warning", f"none here: {detail}; pieces need Linux, all else runs")


def _limits(where: Where, mode: str) -> Iterator[Finding]:
    """How each limit of a space is enforced here."""
    if not linux.can_run_workers():
        return
    name = where.app or app_name()
    try:
        app = None if name is None else load_app(name)
        settings, database = (Settings.load(), None) if app is None else (app.configured_settings, app.database_url)
        told = limits.report(settings, mode=mode, store=where.url(), database=database)
    except PieceworkError:
        told = limits.report(Settings(), mode=mode)  # of what is wrong other findings tell
    for limit, words in told.items():
        missing = "not enforced" in words or "NOT protected" in words
        yield Finding(f"limit {limit}", "warning" if missing else "ok", words)


def _word(there: bool) -> str:
    return "yes" if there else "no"


def _extras() -> Iterator[Finding]:
    try:
        requirements = importlib.metadata.requires("piecework") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("extras", "warning", "piecework is not installed as a package: they cannot be told")
        return
    parts: dict[str, list[str]] = {}
    for requirement in requirements:
        if found := _REQUIREMENT.match(requirement):
            parts.setdefault(found[2], []).append(found[1])
    for extra, packages in parts.items():
        missing = [package for package in packages if not _installed(package)]
        if missing:
            detail = f"missing {', '.join(missing)}: pip install 'piecework[{extra}]'"
            yield Finding(f"extra {extra}", "warning", detail)
        else:
            yield Finding(f"extra {extra}", "ok", ", ".join(packages))


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _app(where: Where) -> Iterator[Finding]:
    name = where.app or app_name()
    if name is None:
        return
    try:
        yield Finding("app", "ok", f"{name} is {load_app(name).name!r}")
    except PieceworkError as error:
        yield Finding("app", "failed", error.message)
        return
    left = of_import(name.partition(":")[0]) if linux.can_run_workers() else []
    if left:
        advice = "workers cannot share that: make it in a service instead"
        yield Finding("app import", "warning", f"importing it leaves behind {', '.join(left)}; {advice}")


async def _outbox(where: Where) -> list[Finding]:
    """What transactions of the app's database promised and the store does not have yet."""
    name = where.app or app_name()
    try:
        url = None if name is None else load_app(name).database_url
        if url is None or (url.startswith("sqlite:") and not sqlite_path(url).exists()):
            return []
        waiting, dead = await _counted(url)
    except PieceworkError as error:
        # Of an app that cannot be imported another finding tells.
        return [] if isinstance(error, AppImportError) else [Finding("outbox", "failed", error.message)]
    detail = f"{waiting} waiting, {dead} dead"
    if dead:
        detail += ": their errors stand in piecework_outbox; the guide to transactions says how to go on"
    return [Finding("outbox", "warning" if dead else "ok", detail)]


async def _counted(url: str) -> tuple[int, int]:
    database = Database(url, pool_size=1, wait_seconds=5)
    try:
        return await counts(database)
    finally:
        await database.close()


async def _store(where: Where) -> list[Finding]:
    try:
        url = where.url()
        if not url.startswith("sqlite:"):
            return await _server(url)
        path = sqlite_path(url).absolute()
    except PieceworkError as error:
        return [Finding("store", "failed", error.message)]
    return [_file(path), await _node(path)]


async def _server(url: str) -> list[Finding]:
    async with looking_at(url) as look:
        told = await describe_store(look)
    version = told["schema_version"]
    if not version:
        return [Finding("store", "ok", f"{told['url']} has no schema yet: `piecework serve` makes it")]
    now = datetime.now(UTC).isoformat()
    living = [node for node in told["nodes"] or () if node["expires_at"] is None or node["expires_at"] > now]
    nodes = [f"process {node['pid']} on {node['host']}" for node in living]
    return [
        Finding("store", "ok", f"{told['url']}, {told['engine_version']}, schema version {version}"),
        Finding(
            "node", "ok" if nodes else "warning", ", ".join(nodes) or "no node lives: start one, `piecework serve`"
        ),
    ]


def _file(path: Path) -> Finding:
    if not path.exists():
        return Finding("store", "ok", f"{path} is not there yet: `piecework serve` makes it")
    try:
        version = _version(path)
    except (PieceworkError, sqlite3.Error, OSError) as error:
        return Finding("store", "failed", str(error))
    pid = read_note(path).get("pid")
    holder = f"open in process {pid}" if pid else "open in no process"
    return Finding("store", "ok", f"{path}, schema version {version}, {holder}")


def _version(path: Path) -> int:
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
    except sqlite3.Error as error:
        raise StoreError(f"{path} cannot be opened: {error}") from error
    try:
        return inspect_sqlite(connection, str(path))
    finally:
        connection.close()


async def _node(path: Path) -> Finding:
    try:
        async with await LinkClient.connect(path, timeout_seconds=0) as link:
            info: dict[str, Any] = await link.ask("info")
    except NoNodeError as error:
        return Finding("node", "failed" if "pid" in error.data else "warning", error.message)
    except PieceworkError as error:
        return Finding("node", "failed", error.message)
    workers = sum(space["pid"] is not None for space in info["spaces"])
    detail = f"{info['node_id']} of app {info['app']!r} answers in process {info['pid']}, {workers} workers"
    return Finding("node", "ok", detail)
