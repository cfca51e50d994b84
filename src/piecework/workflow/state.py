"""How a run's data grows: from its event, by the patches of its steps. Pure."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from piecework.container.state import is_delete, merge
from piecework.errors import ConflictError

_encoder = msgspec.json.Encoder()
_sorted_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder()
_Path: TypeAlias = tuple[str, ...]
META = "__run_meta__"
TRIGGER_EVENT = "__trigger_event__"
_OF_RESUME = ("__resume_event__", "__resume_reason__", "__events__")


def initial_state(
    payload: dict[str, Any], *, workflow_id: str, trigger_id: str, pipeline_id: str, event: dict[str, Any]
) -> dict[str, Any]:
    """The state that a run begins with: the payload's keys, and where it comes from."""
    return {
        **payload,
        META: {"workflow": workflow_id, "trigger": trigger_id, "pipeline": pipeline_id},
        TRIGGER_EVENT: event,
    }


def resumed(state: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """A state with a resume's patch; what an earlier resume said of itself goes, so that the two are never mixed."""
    return merge({key: value for key, value in state.items() if key not in _OF_RESUME}, patch)


def merge_all(
    state: dict[str, Any], patches: list[tuple[str, dict[str, Any]]], *, last_wins: bool = False
) -> dict[str, Any]:
    """Merges the patches of a stage's steps, in the order in which the stage declares them.

    Args:
        state: Before the stage.
        patches: Pairs of step id and patch.
        last_wins: Whether a later step's value replaces an earlier one's; otherwise the two are a conflict.

    Raises:
        ConflictError: Two steps wrote different values to the same place.
    """
    written: dict[_Path, tuple[str, Any]] = {}
    above: dict[_Path, str] = {}
    for step_id, patch in patches:
        for path, value in () if last_wins else _leaves(patch):
            other = _clash(written, above, path, value)
            if other is not None:
                where = ".".join(path)
                raise ConflictError(
                    f"steps {other!r} and {step_id!r} both wrote {where!r}, with different values: "
                    'let one of them write it, put them into two stages, or say Stage(merge="last")',
                    path=where,
                    steps=[other, step_id],
                )
            written[path] = (step_id, value)
            for length in range(1, len(path)):
                above.setdefault(path[:length], step_id)
        state = merge(state, patch)
    return state


def snapshot(state: dict[str, Any]) -> dict[str, Any]:
    """A copy that a step may do with what it likes; by way of JSON, which it is, and ten times as fast."""
    copied: dict[str, Any] = _decoder.decode(_encoder.encode(state))
    return copied


def _leaves(patch: dict[str, Any], prefix: _Path = ()) -> list[tuple[_Path, Any]]:
    found: list[tuple[_Path, Any]] = []
    for key, value in patch.items():
        path = (*prefix, key)
        if isinstance(value, dict) and value and not is_delete(value):
            found += _leaves(value, path)
        else:
            found.append((path, value))
    return found


def _clash(written: dict[_Path, tuple[str, Any]], above: dict[_Path, str], path: _Path, value: Any) -> str | None:
    """Who wrote something else at a path, above it, or beneath it."""
    for length in range(1, len(path)):
        if path[:length] in written:
            return written[path[:length]][0]
    if path in above:
        return above[path]
    if path in written and _sorted_encoder.encode(written[path][1]) != _sorted_encoder.encode(value):
        return written[path][0]
    return None
