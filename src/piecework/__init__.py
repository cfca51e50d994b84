"""Piecework: the durable runtime for the work behind a Python application.

Workspaces isolate, workflows react to events, pause for people and survive crashes, pieces keep every tenant's
background work in a process of its own. Importing this opens nothing, and loads what you name when you name it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from piecework.app import App as App
    from piecework.bus.event import Event as Event
    from piecework.bus.subscriptions import EventBus as EventBus
    from piecework.config import Settings as Settings
    from piecework.container.parameters import Use as Use
    from piecework.container.registry import Service as Service
    from piecework.container.state import DELETE as DELETE
    from piecework.errors import PieceworkError as PieceworkError
    from piecework.run.admission import Exclusive as Exclusive
    from piecework.run.admission import Serialized as Serialized
    from piecework.run.admission import SingletonLoop as SingletonLoop
    from piecework.run.admission import Transient as Transient
    from piecework.run.failure import Backoff as Backoff
    from piecework.run.failure import ThreeStrikes as ThreeStrikes
    from piecework.run.outcome import Failed as Failed
    from piecework.run.outcome import RetryAfter as RetryAfter
    from piecework.run.outcome import Skipped as Skipped
    from piecework.run.outcome import Success as Success
    from piecework.runtime import Runtime as Runtime
    from piecework.workflow.definition import Pipeline as Pipeline
    from piecework.workflow.definition import Stage as Stage
    from piecework.workflow.definition import Step as Step
    from piecework.workflow.definition import Trigger as Trigger
    from piecework.workflow.definition import Workflow as Workflow
    from piecework.workflow.definition import advance as advance
    from piecework.workflow.definition import jump as jump
    from piecework.workflow.definition import pause as pause
    from piecework.workflow.definition import terminate as terminate
    from piecework.workflow.pause import WaitFor as WaitFor
    from piecework.workflow.store_registry import StoreRegistry as StoreRegistry
    from piecework.workspace.context import current_workspace as current_workspace
    from piecework.workspace.workspace import Workspace as Workspace

__version__ = "0.1.0.dev0"

_HOMES = {
    "App": "app",
    "Backoff": "run.failure",
    "DELETE": "container.state",
    "Event": "bus.event",
    "EventBus": "bus.subscriptions",
    "Exclusive": "run.admission",
    "Failed": "run.outcome",
    "PieceworkError": "errors",
    "Pipeline": "workflow.definition",
    "RetryAfter": "run.outcome",
    "Runtime": "runtime",
    "Serialized": "run.admission",
    "Service": "container.registry",
    "Settings": "config",
    "SingletonLoop": "run.admission",
    "Skipped": "run.outcome",
    "Stage": "workflow.definition",
    "StoreRegistry": "workflow.store_registry",
    "Step": "workflow.definition",
    "Success": "run.outcome",
    "ThreeStrikes": "run.failure",
    "Transient": "run.admission",
    "Trigger": "workflow.definition",
    "Use": "container.parameters",
    "WaitFor": "workflow.pause",
    "Workflow": "workflow.definition",
    "Workspace": "workspace.workspace",
    "advance": "workflow.definition",
    "current_workspace": "workspace.context",
    "jump": "workflow.definition",
    "pause": "workflow.definition",
    "terminate": "workflow.definition",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - a list of texts, made from the table above


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'piecework' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"piecework.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *_HOMES})
