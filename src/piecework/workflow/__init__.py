"""Workflows, a kind of work: events start runs that go stage by stage, pause for people and survive crashes.

Read `definition` (what users write), then the pure parts: `state` (how a run's data grows) and `pause` (which event
wakes which run); then `stages` (one stage), `executor` (one run, stage by stage) and `runtime` (the door). May import
`run` and below.
"""

from piecework.workflow.context import StateView, StepContext

__all__ = ["StateView", "StepContext"]
