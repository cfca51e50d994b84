"""Which event wakes which run: clauses over the payload, all of which have to hold. Pure but for the ids it makes.

A clause never raises: what cannot be compared is simply not met, and a missing or null field meets nothing but
`exists=False`.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from piecework.clock import micros
from piecework.container.state import in_json
from piecework.errors import ValidationError
from piecework.ids import new_id
from piecework.store.records import Wait
from piecework.store.values import check_identifier, encode, encode_mapping
from piecework.store.verbs.probes import BUCKET, MISSING, bucket, probe, value_at
from piecework.workflow.definition import check_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from piecework.store.records import EventRow

MODES: Final = ("any", "all")
STATE: Final = "$state"
OPERATORS: Final = {"eq": "==", "ne": "!=", "gt": ">", "ge": ">=", "lt": "<", "le": "<=", "exists": "exists"}
_ORDER: Final[dict[str, Callable[[Any, Any], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
# Operators of other query languages: taken for the name of a field they would wait for ever without a word.
_FOREIGN = frozenset(
    {"gte", "lte", "neq", "in", "not_in", "contains", "startswith", "endswith", "isnull", "range", "regex"}
)
_SYMBOLS = frozenset(OPERATORS.values())


@dataclass(frozen=True, slots=True)
class Clause:
    """One condition over an event's payload.

    Attributes:
        field: A dotted path.
        op: One of ==, !=, >, >=, <, <=, exists.
        value: What the field is compared with; `{"$state": "path"}` stands for what the run's state has there when the
            wait is registered.
    """

    field: str
    op: str
    value: Any

    def __post_init__(self) -> None:
        check_identifier(self.field, "condition field")
        if self.op not in _SYMBOLS:
            known = ", ".join(sorted(_SYMBOLS))
            raise ValidationError(f"condition on {self.field!r}: unknown operator {self.op!r}; there are {known}")
        encode(self.value, what=f"condition on {self.field!r}")
        if isinstance(self.value, dict) and STATE in self.value:
            if len(self.value) > 1:
                raise ValidationError(f"condition on {self.field!r}: beside {STATE!r} there can be nothing else")
            check_identifier(self.value[STATE], f"{STATE} of the condition on {self.field!r}")

    def filled(self, state: Mapping[str, Any]) -> Clause:
        """The clause with what the run's state has in the place of `{"$state": path}`.

        Raises:
            ValidationError: The state has nothing there.
        """
        if not (isinstance(self.value, dict) and STATE in self.value):
            return self
        found = value_at(state, self.value[STATE])
        if found is MISSING:
            raise ValidationError(
                f"condition on {self.field!r}: the run's state has nothing at {self.value[STATE]!r}: a step has to "
                "write it before the wait is registered",
                field=self.field,
            )
        return Clause(self.field, self.op, found)


@dataclass(frozen=True, slots=True, init=False)
class WaitFor:
    """What a run waits for: any, or one of each, of some event types whose payload meets all clauses.

    Args:
        *events: Event types, at least one.
        mode: "any": the first matching event is enough. "all": one of each type has to have come since the run waits;
            the run goes on with the last one's payload, and with all of them by type as `__events__`.
        timeout_seconds: When to go on without an event; None means never.
        patch: Merged into the state beneath the event's payload.
        conditions: Clauses, or mappings with field, op and value.
        **clauses: `field=value` or `field__op=value`; `__` also steps into a mapping.

    Raises:
        ValidationError: No event type, an unknown operator, or a value that is not JSON.
    """

    events: tuple[str, ...]
    clauses: tuple[Clause, ...]
    timeout_seconds: float | None
    patch: dict[str, Any]
    mode: str

    def __init__(
        self,
        *events: str,
        mode: str = "any",
        timeout_seconds: float | None = None,
        patch: Mapping[str, Any] | None = None,
        conditions: Sequence[Clause | Mapping[str, Any]] = (),
        **clauses: Any,
    ) -> None:
        if not events:
            raise ValidationError("WaitFor needs at least one event type: WaitFor('invoice.approved', id=7)")
        if mode not in MODES:
            raise ValidationError(f"WaitFor: mode {mode!r} is not known; there are {', '.join(MODES)}")
        for event in events:
            check_identifier(event, "event type")
        set_ = object.__setattr__
        set_(self, "mode", mode)
        set_(self, "events", tuple(dict.fromkeys(events)))
        set_(self, "timeout_seconds", check_seconds("WaitFor(timeout_seconds)", timeout_seconds))
        set_(self, "patch", in_json(dict(patch or {})))
        encode_mapping(self.patch, what="WaitFor(patch)")
        given = [condition if isinstance(condition, Clause) else _clause(condition) for condition in conditions]
        set_(self, "clauses", (*given, *(_parse(name, value) for name, value in clauses.items())))


def waits_of(
    wait_for: WaitFor,
    run_id: str,
    *,
    max_buffer: int = 1000,
    stage: str = "",
    state: Mapping[str, Any] | None = None,
) -> tuple[Wait, ...]:
    """The rows of a registration: one for each event type, under one id.

    Args:
        wait_for: What is waited for.
        run_id: By whom.
        max_buffer: How many events are kept for the run before it pauses.
        stage: Whose `wait=` it is; empty for a step's own registration.
        state: The run's, which conditions may name.

    Raises:
        ValidationError: A condition names what the state does not have.
    """
    name = f"{run_id}/{stage}" if stage else new_id()
    filled = [clause.filled(state or {}) for clause in wait_for.clauses]
    equal = next((c for c in filled if c.op == "==" and c.value is not None), None)
    clauses = encode([[c.field, c.op, c.value] for c in filled])
    timeout = None if wait_for.timeout_seconds is None else micros(wait_for.timeout_seconds)
    return tuple(
        Wait(
            wait_id=name,
            event_type=event,
            run_id=run_id,
            stage=stage,
            field=BUCKET if equal is None else equal.field,
            probe=bucket(event) if equal is None else probe(event, equal.field, equal.value),
            clauses=clauses,
            patch=encode(wait_for.patch) if wait_for.patch else None,
            timeout=timeout,
            max_buffer=max_buffer,
            registered_at=0,
            mode=wait_for.mode,
        )
        for event in wait_for.events
    )


def resume_patch(wait: Wait, event: EventRow, payload: dict[str, Any]) -> dict[str, Any] | None:
    """What a run resumes with when an event meets its wait, else None: the wait's patch, overlaid by the payload."""
    if wait.event_type != event.type:
        return None
    if not all(holds(payload, field, op, value) for field, op, value in msgspec.json.decode(wait.clauses)):
        return None
    told = {"id": event.event_id, "type": event.type, "payload": payload, "space": event.space}
    base = msgspec.json.decode(wait.patch) if wait.patch is not None else {}
    return {**base, **payload, "__resume_event__": told}


def holds(payload: Any, field: str, op: str, expected: Any) -> bool:
    """Whether one clause is met; never raises."""
    actual = value_at(payload, field)
    present = actual is not MISSING and actual is not None
    if op == "exists":
        return present is (expected is not False)
    if not present:
        return False
    if op == "==":
        return same(actual, expected)
    if op == "!=":
        return not same(actual, expected)
    if _is_number(actual) and _is_number(expected):
        return _ORDER[op](actual, expected)
    if isinstance(actual, str) and isinstance(expected, str):
        return _ORDER[op](actual, expected)
    return False


def same(one: Any, other: Any) -> bool:
    """Deep equality in which 1 equals 1.0 and True is no number."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _clause(condition: Mapping[str, Any]) -> Clause:
    try:
        op = condition.get("op", "==")
        return Clause(condition["field"], OPERATORS.get(op, op), condition.get("value"))
    except (KeyError, AttributeError, TypeError):
        raise ValidationError(f"a condition needs field, op and value, not {condition!r:.120}") from None


def _parse(name: str, value: Any) -> Clause:
    *path, last = name.split("__")
    if path and last in OPERATORS:
        return Clause(".".join(path), OPERATORS[last], value)
    if path and last in _FOREIGN:
        known = ", ".join(OPERATORS)
        raise ValidationError(f"WaitFor: {name}= has the operator {last!r}, which there is not; there are {known}")
    return Clause(".".join([*path, last]), "==", value)
