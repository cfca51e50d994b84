"""What stands in a store, told in numbers: its size, its rows, its oldest open run and its nodes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from piecework.store.lockfile import read_note
from piecework.store.looking import SqliteLook
from piecework.store.records import TABLES

if TYPE_CHECKING:
    from piecework.store.looking import Look

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


async def describe(look: Look) -> dict[str, Any]:
    """Tells about a store as JSON values; of one with an older schema only what does not depend on its tables.

    Args:
        look: Where every number is read, so that they agree with each other.

    Raises:
        StoreError: It cannot be read.
    """
    size, log = await look.size()
    told: dict[str, Any] = {
        "engine": look.engine,
        "engine_version": look.engine_version,
        "url": look.url,
        "schema_version": look.version,
        "newest_schema_version": look.newest,
        "size_bytes": size,
        "wal_bytes": log,
        "node_pid": read_note(look.path).get("pid") if isinstance(look, SqliteLook) else None,
        "tables": None,
        "runs": None,
        "oldest_open_run": None,
        "nodes": None,
    }
    if look.version == look.newest:
        counts = dict(await look.read("info_tables", {}))
        told["tables"] = {record.table: counts[record.table] for record in TABLES}
        told["runs"] = [
            {"kind": kind, "status": status, "count": count}
            for kind, status, count in await look.read("info_statuses", {})
        ]
        oldest = await look.read("info_oldest_run", {})
        told["oldest_open_run"] = _run(oldest[0]) if oldest else None
        told["nodes"] = [_node(row) for row in await look.read("info_nodes", {})]
    return told


def _run(row: Any) -> dict[str, Any]:
    names = ("run_id", "kind", "workflow_id", "space", "status")
    return {**dict(zip(names, row, strict=False)), "created_at": _moment(row[5])}


def _node(row: Any) -> dict[str, Any]:
    names = ("node_id", "pid", "host", "version")
    moments = {
        name: _moment(value) for name, value in zip(("started_at", "renewed_at", "expires_at"), row[4:], strict=True)
    }
    return {**dict(zip(names, row, strict=False)), **moments}


def _moment(microseconds: int | None) -> str | None:
    return None if microseconds is None else (_EPOCH + timedelta(microseconds=microseconds)).isoformat()
