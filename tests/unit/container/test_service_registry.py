from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import pytest

from piecework.container.parameters import Use, parameters_of, produced_type
from piecework.container.registry import Recipe, Registry, Service
from piecework.container.scope import Scope
from piecework.errors import DuplicateKeyError, ValidationError

if TYPE_CHECKING:
    from piecework.workspace.workspace import Workspace


class Reports:
    pass


def make() -> Reports:
    return Reports()


def plain() -> Reports:
    return Reports()


def generator() -> Iterator[Reports]:
    yield Reports()


async def async_generator() -> AsyncIterator[Reports]:
    yield Reports()


@contextlib.contextmanager
def manager() -> Iterator[Reports]:
    yield Reports()


def test_the_same_id_twice_is_refused() -> None:
    """A second service of one id in one registry is a DuplicateKeyError that names it."""
    registry = Registry([Recipe("reports", make, Scope.APP)])
    with pytest.raises(DuplicateKeyError, match="'reports'"):
        registry.add(Recipe("reports", make, Scope.RUN))


@pytest.mark.parametrize("name", ["__env__", "__pause_service__"])
def test_reserved_ids_are_refused(name: str) -> None:
    """The ids of the built-in services cannot be taken; the message names the id."""
    with pytest.raises(DuplicateKeyError, match=name):
        Registry().add(Recipe(name, make, Scope.APP))


def test_reserved_ids_are_for_piecework_itself() -> None:
    """Piecework's own services may take the reserved ids."""
    registry = Registry()
    registry.add(Recipe("__env__", make, Scope.APP), internal=True)
    assert registry.names() == {"__env__"}


def test_a_recipe_can_be_taken_out_again() -> None:
    """What `add` returns removes the recipe, and only that one."""
    registry = Registry()
    remove = registry.add(Recipe("reports", make, Scope.APP))
    second = Recipe("reports", make, Scope.APP)
    registry.add(second, replace=True)
    remove()
    assert registry.get("reports") is second


@pytest.mark.parametrize("factory", [plain, generator, async_generator, manager, Reports])
def test_the_type_is_what_the_factory_makes(factory: object) -> None:
    """A service's type is what its factory returns or yields, or the class that it is."""
    assert produced_type(factory) is Reports  # type: ignore[arg-type]  # each is callable


def test_a_type_with_two_services_fails_with_both_names() -> None:
    """Asking by a type that two services have names both."""
    registry = Registry([Recipe("one", plain, Scope.APP), Recipe("two", generator, Scope.APP)])
    with pytest.raises(ValidationError, match="'one' and 'two'"):
        registry.get(Reports)


def test_a_type_that_only_type_checkers_know_is_found_by_its_name() -> None:
    """A factory may annotate with a name that does not exist while it runs."""

    def make() -> Workspace:
        raise NotImplementedError

    registry = Registry([Recipe("ws", make, Scope.APP)])
    assert registry.get(type("Workspace", (), {})) is registry.get("ws")
    assert registry.get(Reports) is None


def test_provides_says_the_type() -> None:
    """`provides` decides the type, whatever the factory says."""
    registry = Registry([Recipe("reports", lambda: None, Scope.APP, provides=Reports)])
    assert registry.get(Reports) is registry.get("reports")


def test_annotations_for_type_checkers_only_do_not_hide_the_rest() -> None:
    """`Use` and the workspace are found though names were imported for type checkers only."""

    def fn(a: Workspace, b: Annotated[Workspace, Use("mail")]) -> None: ...

    class Workspace_:  # noqa: N801 - stands for another class
        pass

    Workspace_.__name__ = "Workspace"
    first, second = parameters_of(fn)
    assert first.is_a(Workspace_)
    assert second.use == "mail"


def test_the_services_of_an_app_have_no_scope() -> None:
    """A scope given in an app's list is refused; a workflow's list defaults to workflow."""
    with pytest.raises(ValidationError, match="leave the scope out"):
        Service("clock", make, scope="run").recipe(Scope.APP)
    assert Service("clock", make).recipe(Scope.WORKFLOW).scope is Scope.WORKFLOW


@pytest.mark.parametrize(("name", "factory"), [("", make), ("reports", 3)])
def test_a_recipe_needs_a_name_and_a_function(name: str, factory: object) -> None:
    """A service without a name or with a factory that cannot be called is refused."""
    with pytest.raises(ValidationError):
        Recipe(name, factory, Scope.APP)  # type: ignore[arg-type]  # which is what is tested


@pytest.mark.parametrize("made", [Reports, Iterator[Reports], Iterable[Reports], Generator[Reports, None, None]])
def test_a_generator_may_say_what_it_yields_in_any_form(made: Any) -> None:
    """A generator is asked for by what it yields, also where it is annotated with nothing but that."""

    def factory() -> Any:
        yield Reports()

    factory.__annotations__["return"] = made
    assert produced_type(factory) is Reports
    factory.__annotations__["return"] = Iterator
    assert produced_type(factory) is None


@pytest.mark.parametrize("scope", ["run", "transient"])
def test_what_is_not_lazy_lives_where_it_is_declared(scope: str) -> None:
    """`lazy=False` is refused for what lives in runs, which are not there when a workflow is registered."""
    with pytest.raises(ValidationError, match="lazy=False"):
        Service("thing", Reports, scope=scope, lazy=False).recipe(Scope.WORKFLOW)
