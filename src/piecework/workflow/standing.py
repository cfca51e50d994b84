"""How a run stands whose end nobody has waited for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from piecework.workflow.result import Result, RunMetadata, RunValue

if TYPE_CHECKING:
    from piecework.run.info import RunInfo


def standing(info: RunInfo, *, delivered: str | None = None) -> Result:
    """A Result that tells where a run is, without its state.

    Args:
        info: The run.
        delivered: What became of a signal to it.
    """
    value = RunValue(info.status, {}, info.waiting_for, delivered)
    return Result(value=value, metadata=RunMetadata(info.run_id, info.status))
