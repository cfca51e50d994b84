"""Settings: every number that an operator may turn, with its unit in its name.

A setting comes from `App(settings=Settings(…))`, else from the environment as `PIECEWORK_<FIELD>`, else from
`[tool.piecework]` of the pyproject.toml in the working folder, else its default.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from piecework.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "PIECEWORK_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The numbers of one app; durations in seconds, sizes in bytes.

    Attributes:
        lease_seconds: How long what a node has stays its own when it says nothing more, where others can be nodes too;
            a little before that its workers are ended, on every store.
        heartbeat_seconds: How often it says so.
        loop_stall_seconds: After how long without a turn of its loop it stops saying so.
        crash_limit: How often a run may take its process down without progress before it fails with CRASHED.
        pause_window_seconds: How long the services of a paused run are kept alive; 0 keeps none.
        hot_runs_limit: Of how many paused runs at once; those that paused first go first.
        max_resumes_without_progress: How often in a row a run may pause before the same stage and go on at once with a
            kept event, with nothing in its state changed, before it fails; 0 sets no limit.
        close_timeout_seconds: How long one closer of a service may take.
        hook_timeout_seconds: How long one call of a workflow's hook may take.
        abort_grace_seconds: How long an aborted step may go on before it is abandoned.
        workspaces_limit: Workspaces open at once; further ones wait.
        workspaces_wait_seconds: How long they wait.
        sync_threads_limit: Threads for synchronous user functions.
        connect_timeout_seconds: How long a client waits for a node.
        payload_limit_bytes: The largest encoded value (payload, state, result).
        switch_interval_seconds: `sys.setswitchinterval` while a node is open; None leaves the host's alone.
        retention_seconds: How long ended runs and their events are kept.
        dedup_seconds: How long a second event of one id is known to be a duplicate.
        piece_history_limit: Runs kept for each piece.
        skipped_history_limit: How many of those may have been skipped ones.
        database_pool_size: Connections to the application's database.
        outbox_sweep_seconds: How often a node looks for what killed processes left in the outbox there.
        space_workers_limit: Worker processes alive at once.
        space_concurrency: Updates under way at once inside a space.
        space_idle_seconds: How long an idle worker lingers.
        space_grace_seconds: Between a cancel and the kill.
        space_boot_seconds: From the request for a worker to its first word.
        space_init_seconds: From there until it is ready.
        space_stall_seconds: After how long without a turn of its loop a worker is called blocked.
        crash_loop_limit: How many workers of a space that end by themselves, or cannot start, break the space.
        crash_loop_window_seconds: Within how long.
        space_memory_bytes: Memory of a space's processes beyond what a worker is born with, of each and of all
            together; None sets no limit, as with the next three.
        space_run_cpu_seconds: Processor time of one update, that of all it started included.
        space_open_files: Descriptors that one process of a space may have open.
        space_processes: Processes of a space at once, its worker included.
        space_readable_paths: Files and folders that spaces may read besides their own, their database's and code.
        space_writable_paths: The same for writing.
        mail_retry_seconds: Waits before a refused mail is tried again.
        redacted_names: More names of fields that never stand in log lines and timelines; password, token and their like
            are known.
        strict_timeline: Whether a run fails when its log lines cannot be written.
    """

    lease_seconds: float = 15
    heartbeat_seconds: float = 3
    loop_stall_seconds: float = 60
    crash_limit: int = 5
    pause_window_seconds: float = 900
    hot_runs_limit: int = 1000
    max_resumes_without_progress: int = 10_000
    close_timeout_seconds: float = 10
    hook_timeout_seconds: float = 30
    abort_grace_seconds: float = 10
    workspaces_limit: int = 1000
    workspaces_wait_seconds: float = 30
    sync_threads_limit: int = 32
    connect_timeout_seconds: float = 5
    payload_limit_bytes: int = 16_777_216
    switch_interval_seconds: float | None = None
    retention_seconds: float = 604_800
    dedup_seconds: float = 86_400
    piece_history_limit: int = 50
    skipped_history_limit: int = 5
    database_pool_size: int = 10
    outbox_sweep_seconds: float = 30
    space_workers_limit: int = 64
    space_concurrency: int = 4
    space_idle_seconds: float = 300
    space_grace_seconds: float = 5
    space_boot_seconds: float = 30
    space_init_seconds: float = 60
    space_stall_seconds: float = 10
    crash_loop_limit: int = 5
    crash_loop_window_seconds: float = 600
    space_memory_bytes: int | None = 536_870_912
    space_run_cpu_seconds: float | None = None
    space_open_files: int | None = 256
    space_processes: int | None = 32
    space_readable_paths: tuple[str, ...] = ()
    space_writable_paths: tuple[str, ...] = ()
    mail_retry_seconds: tuple[float, ...] = (5, 30, 300, 1800)
    redacted_names: tuple[str, ...] = ()
    strict_timeline: bool = False

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, folder: Path | None = None) -> Settings:
        """Reads the settings from the environment and from pyproject.toml.

        Args:
            environ: Variables; None means the process's own.
            folder: Where pyproject.toml is looked for; None means the working folder.

        Raises:
            ValidationError: A value is not of its field's type; the message names the variable or key.
        """
        variables = os.environ if environ is None else environ
        table = _tool_table(folder or Path.cwd())
        given: dict[str, Any] = {}
        for spec in fields(cls):
            name = PREFIX + spec.name.upper()
            if name in variables:
                given[spec.name] = _convert(name, variables[name], str(spec.type))
            elif spec.name in table:
                given[spec.name] = _convert(f"[tool.piecework] {spec.name}", table[spec.name], str(spec.type))
        return cls(**given)


def _tool_table(folder: Path) -> dict[str, Any]:
    import tomllib

    file = folder / "pyproject.toml"
    try:
        table = tomllib.loads(file.read_text("utf-8")).get("tool", {}).get("piecework", {})
    except (OSError, UnicodeDecodeError):
        return {}
    except tomllib.TOMLDecodeError as error:
        raise ValidationError(f"{file} cannot be read as TOML: {error}", path=str(file)) from error
    return table if isinstance(table, dict) else {}


def _convert(name: str, raw: Any, kind: str) -> Any:
    """Reads a setting as its field is declared: a yes or no, a whole number, a number, a tuple of texts or numbers."""
    try:
        if kind == "bool":
            return _truth(raw)
        if kind.startswith("tuple[str"):
            return tuple(item.strip() for item in (raw.split(",") if isinstance(raw, str) else raw) if item.strip())
        if kind.startswith("tuple"):
            items = raw.split(",") if isinstance(raw, str) else raw
            return tuple(_positive(float(item)) for item in items)
        if kind.endswith("None") and raw == "":
            return None
        if kind.startswith("int"):
            return _positive(int(raw) if isinstance(raw, str | int) else int(str(raw)))
        return _positive(float(raw))
    except (AttributeError, TypeError, ValueError) as error:
        wanted = _WANTED.get(kind, "a number of 0 or more")
        raise ValidationError(f"{name} = {raw!r} is not {wanted}: give one, or remove it", name=name) from error


_WANTED = {
    "int": "a whole number of 0 or more",
    "int | None": "a whole number of 0 or more, or empty for none",
    "bool": "one of true and false",
    "tuple[str, ...]": "a list of texts",
}
_TRUTHS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _truth(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    if str(raw).lower() not in _TRUTHS:
        raise ValueError(raw)
    return _TRUTHS[str(raw).lower()]


_N = TypeVar("_N", int, float)


def _positive(value: _N) -> _N:
    if not 0 <= value < math.inf:
        raise ValueError(value)
    return value


def tool_setting(name: str, folder: Path | None = None) -> str | None:
    """Reads one text of `[tool.piecework]` (such as `app` or `store`); None when it is not there."""
    value = _tool_table(folder or Path.cwd()).get(name)
    return value if isinstance(value, str) else None
