"""Promises about definitions: a wrong one is refused when it is built, with its id and what to do."""

from __future__ import annotations

import pytest

from piecework.errors import DuplicateKeyError, NotFoundError, PieceworkError, ValidationError
from piecework.workflow.definition import (
    Pipeline,
    Stage,
    Step,
    Trigger,
    Workflow,
    advance,
    jump,
    pause,
    terminate,
)
from piecework.workflow.pause import WaitFor


async def work(ctx):
    return None


async def other(ctx):
    return None


def a_stage(name="one", **options):
    return Stage(name, steps=[work], **options)


BAD = [
    (lambda: Step("work"), "a step needs a function"),
    (lambda: Step(work, id=""), "step id"),
    (lambda: Step(work, retries=-1), "step 'work': retries"),
    (lambda: Step(work, retries=True), "step 'work': retries"),
    (lambda: Step(work, retries=1.0), "step 'work': retries"),
    (lambda: Step(work, timeout_seconds=0), "step 'work': timeout_seconds"),
    (lambda: Step(work, timeout_seconds=float("nan")), "step 'work': timeout_seconds"),
    (lambda: Step(work, timeout_seconds=float("inf")), "step 'work': timeout_seconds"),
    (lambda: Step(work, timeout_seconds=True), "step 'work': timeout_seconds"),
    (lambda: Stage(""), "stage id"),
    (lambda: Stage("a\x00"), "stage id"),
    (lambda: Stage("a", steps=[work, work]), "stage 'a' has two steps 'work'"),
    (lambda: Stage("a", steps=["work"]), "stage 'a'"),
    (lambda: Stage("a", steps=work), "stage 'a'.*list"),
    (lambda: Stage("a", steps="work"), "stage 'a'.*list"),
    (lambda: Stage("a", timeout_seconds=-1), "stage 'a': timeout_seconds"),
    (lambda: Stage("a", router="next"), "stage 'a': router"),
    (lambda: Stage("a", wait="paid"), "stage 'a': wait"),
    (lambda: Stage("a", router=advance, wait=WaitFor("paid")), "stage 'a' has both"),
    (lambda: Pipeline([]), "at least one Stage"),
    (lambda: Pipeline([work]), "at least one Stage"),
    (lambda: Pipeline(a_stage()), "at least one Stage"),
    (lambda: Pipeline([a_stage(), a_stage()]), "two stages 'one'"),
    (lambda: Pipeline([a_stage(router=jump("tow")), a_stage("two")]), "no stage 'tow': did you mean 'two'.*'one'"),
    (lambda: Pipeline([a_stage(router=pause(then="gone"))]), "no stage 'gone'"),
    (lambda: jump(""), "stage"),
    (lambda: pause(timeout_seconds=0), r"pause\(timeout_seconds\)"),
    (lambda: Trigger(""), "trigger event"),
    (lambda: Trigger("paid", when=True), "trigger on 'paid': when"),
    (lambda: Workflow("", on="paid", stages=[a_stage()]), "workflow id"),
    (lambda: Workflow("w"), "workflow 'w' needs"),
    (lambda: Workflow("w", on="paid"), "workflow 'w' needs both"),
    (lambda: Workflow("w", stages=[a_stage()]), "workflow 'w' needs both"),
    (lambda: Workflow("w", on="paid", stages=[]), "at least one Stage"),
    (
        lambda: Workflow("w", on="paid", stages=[a_stage()], triggers={"t": Trigger("x")}),
        "workflow 'w' mixes",
    ),
    (
        lambda: Workflow("w", when=len, triggers={"t": Trigger("x")}, pipelines={"t": Pipeline([a_stage()])}),
        "workflow 'w' mixes",
    ),
    (
        lambda: Workflow("w", triggers={"t": Trigger("x")}, pipelines={"u": Pipeline([a_stage()])}),
        "no trigger 'u'.*workflow 'w'",
    ),
    (
        lambda: Workflow("w", triggers={"t": Trigger("x"), "u": Trigger("y")}, pipelines={"t": Pipeline([a_stage()])}),
        "workflow 'w': trigger 'u' has no pipeline",
    ),
    (lambda: Workflow("w", triggers={"t": "x"}, pipelines={"t": Pipeline([a_stage()])}), "trigger 't'.*Trigger"),
    (lambda: Workflow("w", triggers={"t": Trigger("x")}, pipelines={"t": [a_stage()]}), "pipeline 't'.*Pipeline"),
    (lambda: Workflow("w", triggers={"": Trigger("x")}, pipelines={"": Pipeline([a_stage()])}), "trigger id"),
]


@pytest.mark.parametrize(("build", "words"), BAD, ids=[words for _, words in BAD])
def test_a_wrong_definition_is_refused_when_it_is_built(build, words):
    """No wrong definition ever meets an event: building it raises, with its id and what is wrong."""
    with pytest.raises(PieceworkError, match=words) as caught:
        build()
    assert isinstance(caught.value, ValidationError | DuplicateKeyError | NotFoundError)


def test_names_come_from_functions():
    """A step is named by its function, a label is the id, unless somebody says otherwise."""
    stage = Stage("one", steps=[work, Step(other, id="second", label="The second")])
    assert [(step.id, step.label) for step in stage.steps] == [("work", "work"), ("second", "The second")]
    assert (stage.label, stage.router) == ("one", advance)


def test_the_short_form():
    """A workflow of one trigger needs no names but its own."""
    workflow = Workflow("welcome", on="user.created", stages=[a_stage()])
    assert (workflow.label, list(workflow.triggers), list(workflow.pipelines)) == ("welcome", ["default"], ["default"])
    assert (workflow.triggers["default"].event, workflow.triggers["default"].id) == ("user.created", "default")


def test_parts_get_the_ids_of_their_keys():
    """A trigger is named by its key; a pipeline too, unless it has a name of its own."""
    workflow = Workflow(
        "w",
        triggers={"a": Trigger("x"), "b": Trigger("y", id="other")},
        pipelines={"a": Pipeline([a_stage()]), "b": Pipeline([a_stage()], id="mine")},
    )
    assert [trigger.id for trigger in workflow.triggers.values()] == ["a", "b"]
    assert [pipeline.id for pipeline in workflow.pipelines.values()] == ["a", "mine"]


def test_a_definition_does_not_change_behind_its_back():
    """Changing what a definition was built from does not change it."""
    stages, env = [a_stage()], {"LIMIT": "1"}
    workflow = Workflow("w", on="x", stages=stages, env=env)
    stages.append(a_stage("two"))
    env["LIMIT"] = "2"
    assert (len(workflow.pipelines["default"].stages), workflow.env["LIMIT"]) == (1, "1")


def test_the_version_follows_the_shape():
    """Without a version of its own a workflow's version changes with its shape, and only with that."""
    first = Workflow("w", on="x", stages=[a_stage()])
    assert first.version == Workflow("w", on="x", stages=[a_stage()], label="other").version
    shapes = [
        Workflow("w", on="y", stages=[a_stage()]),
        Workflow("w", on="x", stages=[a_stage("two")]),
        Workflow("w", on="x", stages=[Stage("one", steps=[other])]),
        Workflow("w", on="x", stages=[a_stage(), a_stage("two")]),
    ]
    assert len({first.version, *(shape.version for shape in shapes)}) == 5
    assert Workflow("w", on="x", stages=[a_stage()], version="7").version == "7"


def test_where_a_stage_stands():
    """A pipeline knows the places of its stages, and says which there are."""
    pipeline = Pipeline([a_stage("one"), a_stage("two")])
    assert pipeline.position("two") == 1
    with pytest.raises(NotFoundError, match="there are: one, two"):
        pipeline.position("eight")


def test_instructions():
    """An instruction is a value: it says what follows and where."""
    assert (advance.action, terminate.action) == ("advance", "terminate")
    assert (jump("a").action, jump("a").stage) == ("jump", "a")
    assert (pause("a", 5).stage, pause("a", 5).timeout_seconds, pause().stage) == ("a", 5, None)
