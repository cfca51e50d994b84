"""Writes the tables of docs/errors.md: the errors from their classes, the misuses from the list below.

Run it when either changes. The tests do each misuse for real and compare the message with its row.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import NamedTuple

import piecework
from piecework import errors
from piecework.errors import (
    ClosedError,
    CycleError,
    DisposedError,
    DuplicateKeyError,
    InvalidScopeError,
    InvalidStateError,
    NotFoundError,
    PieceworkError,
    TimeoutExceededError,
    UnstableError,
    ValidationError,
)

PAGE = Path(__file__).parent / "errors.md"
_SOURCE = Path(piecework.__file__).parent


class Misuse(NamedTuple):
    """One way to use containers and services wrongly.

    Attributes:
        done: What was done.
        error: What is raised.
        names: What the message names that the error has as attributes too.
        remedy: What to do, in the message's own words; `…` stands for words that differ from case to case.
    """

    done: str
    error: type[Exception]
    names: tuple[str, ...]
    remedy: str

    @property
    def code(self) -> str:
        """The error's code; the name of the class where it is one of Python's own."""
        return str(getattr(self.error, "code", self.error.__name__))


MISUSES = (
    # -- asking
    Misuse("asked for a key that nobody registered", NotFoundError, ("name",), "did you mean 'database'?"),
    Misuse(
        "a factory needs a key that nobody registered",
        NotFoundError,
        ("name", "path"),
        "did you mean 'database'?. Needed by daily -> reports -> databse",
    ),
    Misuse("watched a key that nobody registered", NotFoundError, ("name",), "did you mean 'database'?"),
    Misuse("overrode a key that nobody registered", NotFoundError, ("name",), "did you mean 'database'?"),
    Misuse("asked the app for a service of a workflow's runs", NotFoundError, ("name",), "ask for it in a workspace"),
    Misuse("asked for a type that two services have", ValidationError, ("key",), "Ask for one of them by name"),
    Misuse(
        "read an asynchronous service as an attribute", InvalidStateError, ("name",), "use `await ws.require('slow')`"
    ),
    Misuse(
        "gave params to a service without param_key",
        ValidationError,
        ("name",),
        "register it with param_key, or as transient",
    ),
    Misuse("param_key gives no text", ValidationError, ("name",), "has to give a text"),
    Misuse("asked a container after its end", ClosedError, ("id",), "open a new one"),
    Misuse("asked a container after its end, for a resolution", ClosedError, ("id",), "open a new one"),
    Misuse("registered after the container's end", ClosedError, ("id",), "open a new one"),
    Misuse("extended a container after its end", ClosedError, ("id",), "open a new one"),
    Misuse("watched in a container after its end", ClosedError, ("id",), "open a new one"),
    Misuse("asked below a container after that one's end", DisposedError, ("id",), "open a new one"),
    Misuse("asked for a service whose container was closed before", DisposedError, ("name",), "open a new one"),
    Misuse("the container of a service was closed while it was built", DisposedError, ("name",), "open a new one"),
    # -- registering
    Misuse("took a key that is taken", DuplicateKeyError, ("key",), "choose another id, or say replace=True"),
    Misuse("took a reserved key", DuplicateKeyError, ("key",), "choose another id"),
    Misuse("registered an empty name", ValidationError, ("name",), "a service needs a name, a non-empty text"),
    Misuse("registered what cannot be called", ValidationError, ("name",), "give a function"),
    Misuse("registered with a scope that there is not", ValidationError, ("key",), "choose 'singleton' or 'transient'"),
    Misuse("gave a scope in the app's list of services", ValidationError, ("name",), "leave the scope out"),
    Misuse("gave a workflow's service the scope of the app", ValidationError, ("name",), "declare it on the app"),
    Misuse("registered with retries=-1", ValidationError, ("name",), "has to be a whole number from 0 on"),
    Misuse("registered with timeout_seconds=0", ValidationError, ("name",), "has to be a positive number of seconds"),
    Misuse("registered with timeout_seconds=nan", ValidationError, ("name",), "has to be a positive number of seconds"),
    Misuse("registered with param_limit=0", ValidationError, ("name",), "has to be a whole number from 1 on"),
    Misuse(
        "a parameter names a service that lives shorter",
        InvalidScopeError,
        ("name", "path"),
        "(wide -> narrow): give 'wide' scope run too, or pass the value",
    ),
    Misuse(
        "`Use` names a service that lives shorter",
        InvalidScopeError,
        ("name", "path"),
        "(wide -> narrow): give 'wide' scope run too, or pass the value",
    ),
    # -- building
    Misuse(
        "a factory asks for a service that lives shorter",
        InvalidScopeError,
        ("name", "path"),
        "(wide -> narrow): give 'wide' scope run too, or pass the value",
    ),
    Misuse("a service needs itself", CycleError, ("path",), "a -> a. Let one of them ask later"),
    Misuse("two services need each other", CycleError, ("path",), "a -> b -> a. Let one of them ask later"),
    Misuse(
        "three services need each other in a circle",
        CycleError,
        ("path",),
        "a -> b -> c -> a. Let one of them ask later",
    ),
    Misuse(
        "a transient service needs what needs it, across parent and child",
        CycleError,
        ("path",),
        "lent -> own -> lent. Let one of them ask later",
    ),
    Misuse("made a container its own ancestor", CycleError, ("path",), "it cannot be its parent too"),
    Misuse("a factory takes too long", TimeoutExceededError, ("name",), "raise timeout_seconds"),
    Misuse(
        "what a factory reads changes while it runs, five times",
        UnstableError,
        ("name",),
        "let its factory not change what it selects, or read less",
    ),
    Misuse("a generator that never yields", ValidationError, ("name",), "ended without a yield"),
    Misuse("a generator that yields twice", ValidationError, ("name",), "only clean-up may follow"),
    Misuse("selected from a state that is not within reach", InvalidScopeError, ("name",), "Give it scope 'run'"),
    Misuse("read run_id in a service of the app", InvalidScopeError, ("name",), "give it scope 'run' or 'transient'"),
    # -- listening, exporting
    Misuse("listened for an event that there is not", ValidationError, ("event",), "choose one of build:start, …"),
    Misuse("listened with an async function", ValidationError, ("event",), "needs a plain function"),
    Misuse("watched with an async function", ValidationError, ("name",), "needs a plain function"),
    Misuse(
        "restored a bundle of another version",
        ValidationError,
        ("version",),
        "leave it out, and the services are built anew",
    ),
    # -- variables
    Misuse("read a variable as an attribute", AttributeError, (), "read variables with env.get('HOME')"),
    Misuse("read a variable as an item", TypeError, (), "read variables with env.get('HOME')"),
    Misuse("set a variable as an attribute", InvalidStateError, ("key",), "in env= of the app or of the workflow"),
    Misuse("set a variable as an item", InvalidStateError, ("key",), "in env= of the app or of the workflow"),
    Misuse("deleted a variable as an attribute", InvalidStateError, ("key",), "in env= of the app or of the workflow"),
    Misuse("deleted a variable as an item", InvalidStateError, ("key",), "in env= of the app or of the workflow"),
)


def classes() -> list[type[PieceworkError]]:
    """Every error class of the package: in the order of piecework.errors, others behind the one of their code."""
    for module in _homes():
        importlib.import_module(module)
    found = [cls for cls in _below(PieceworkError) if cls.__module__.startswith("piecework.")]
    place: dict[str, int] = {}
    for cls in vars(errors).values():
        if isinstance(cls, type) and issubclass(cls, PieceworkError) and cls is not PieceworkError:
            place.setdefault(cls.code, len(place))
    return [*sorted(found, key=lambda cls: place.get(cls.code, len(place))), PieceworkError]


def _homes() -> list[str]:
    """The modules that define errors, piecework.errors first: those with a class below PieceworkError, by its name."""
    bases: dict[str, tuple[str, set[str]]] = {}
    for path in sorted(_SOURCE.rglob("*.py")):
        module = ".".join(["piecework", *path.relative_to(_SOURCE).with_suffix("").parts])
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = (module, {base.id for base in node.bases if isinstance(base, ast.Name)})
    ours = {"PieceworkError"}
    while more := {name for name, (_, above) in bases.items() if above & ours} - ours:
        ours |= more
    return sorted({bases[name][0] for name in ours}, key=lambda module: (module != errors.__name__, module))


def _below(cls: type[PieceworkError]) -> list[type[PieceworkError]]:
    """The classes below one, each before those below it."""
    return [found for sub in cls.__subclasses__() for found in (sub, *_below(sub))]


def table() -> str:
    """The errors: code, class, what leads to it, what to do."""
    lines = ["| code | class | cause | cure |", "|---|---|---|---|"]
    for cls in classes():
        name = cls.__name__ if cls.__module__ == errors.__name__ else f"{cls.__module__}.{cls.__name__}"
        lines.append(f"| {cls.code} | `{name}` | {cls.cause} | {cls.cure} |")
    return "\n".join(lines)


def misuses() -> str:
    """The misuses: what was done, the code, what the message names, what it says to do."""
    lines = ["| what was done | code | the message names | and says |", "|---|---|---|---|"]
    for one in MISUSES:
        names = ", ".join(f"`{name}`" for name in one.names)
        lines.append(f"| {one.done} | {one.code} | {names} | {one.remedy} |")
    return "\n".join(lines)


def page() -> str:
    """The page as it has to be."""
    text = PAGE.read_text("utf-8")
    for mark, made in (("errors", table()), ("misuses", misuses())):
        before, rest = text.split(f"<!-- {mark} -->")
        text = f"{before}<!-- {mark} -->\n{made}\n<!-- /{mark} -->{rest.split(f'<!-- /{mark} -->')[1]}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
