"""Piecework: the durable runtime for the work behind a Python application.

Workspaces isolate, workflows react to events, pause for people and survive crashes, pieces keep every tenant's
background work in a process of its own. Importing this opens nothing.
"""

from piecework.app import App
from piecework.bus.event import Event
from piecework.bus.subscriptions import EventBus
from piecework.config import Settings
from piecework.container.parameters import Use
from piecework.container.registry import Service
from piecework.errors import PieceworkError
from piecework.run.admission import Serialized, Transient
from piecework.run.outcome import Failed, RetryAfter, Skipped, Success
from piecework.workflow.definition import Pipeline, Stage, Step, Trigger, Workflow, advance, jump, pause, terminate
from piecework.workflow.pause import WaitFor
from piecework.workflow.runtime import Runtime
from piecework.workspace.context import current_workspace
from piecework.workspace.workspace import Workspace

__version__ = "0.1.0.dev0"

__all__ = [
    "App",
    "Event",
    "EventBus",
    "Failed",
    "PieceworkError",
    "Pipeline",
    "RetryAfter",
    "Runtime",
    "Serialized",
    "Service",
    "Settings",
    "Skipped",
    "Stage",
    "Step",
    "Success",
    "Transient",
    "Trigger",
    "Use",
    "WaitFor",
    "Workflow",
    "Workspace",
    "advance",
    "current_workspace",
    "jump",
    "pause",
    "terminate",
]
