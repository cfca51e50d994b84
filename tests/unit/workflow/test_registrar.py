from __future__ import annotations

import pytest

from piecework.store.items import RegisterRoutes
from piecework.store.records import RouteRow, WorkflowRow
from piecework.workflow.registrar import Routes

NOW = 7
ASKED = RegisterRoutes(workflow_id="flow", version="2", event_types=("come",))
OLD = WorkflowRow("flow", "1", 1), [RouteRow("go", "flow", "1", 1)]
NEW = WorkflowRow("flow", "2", 1), [RouteRow("come", "flow", "2", NOW)]


def test_what_was_there_before_is_restored():
    """What stood before a registration stands again when it is undone."""
    routes = Routes()
    assert routes.decide((ASKED, *OLD), None, NOW) == NEW
    assert not routes.fresh
    assert routes.restore((ASKED, *NEW), None, NOW) == OLD


def test_a_commit_whose_answer_was_lost_is_decided_again():
    """A decision that is repeated on its own outcome still knows what was there before."""
    routes = Routes()
    routes.decide((ASKED, *OLD), None, NOW)
    assert routes.decide((ASKED, *NEW), None, NOW) == NEW
    assert routes.restore((ASKED, *NEW), None, NOW) == OLD


def test_what_somebody_else_wrote_meanwhile_stands():
    """When another node has registered a version meanwhile, undoing this one changes nothing."""
    routes = Routes()
    routes.decide((ASKED, *OLD), None, NOW)
    theirs = WorkflowRow("flow", "3", 1), [RouteRow("go", "flow", "3", 1)]
    assert routes.restore((ASKED, *theirs), None, NOW) == theirs


@pytest.mark.parametrize(("version", "fresh"), [(None, True), ("1", False), ("2", False)])
def test_a_workflow_without_a_version_was_not_there(version, fresh):
    """A workflow is new when its row was made for this very decision."""
    routes = Routes()
    assert not routes.fresh
    routes.decide((ASKED, WorkflowRow("flow", version, 1), []), None, NOW)
    assert routes.fresh is fresh
