"""`piecework command`: an app's own commands, in a process and a workspace of their own."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from piecework.cli.asking import AsJson  # noqa: TC001 - the command line reads it from the annotation
from piecework.cli.telling import say, show_json, show_table
from piecework.errors import AppImportError, ExecutionFailedError, PieceworkError, ValidationError, place_of
from piecework.importing import app_name, load_app

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.app import App
    from piecework.services.command import Command

_Name = Annotated[str | None, Parameter(help="Which command; all are listed with their params when it is omitted.")]
_Words = Annotated[str, Parameter(allow_leading_hyphen=True, help="Its own params: --user-id 7 --deep --name=Ada.")]
_Named = Annotated[str | None, Parameter(help="MODULE:ATTRIBUTE of the app; default PIECEWORK_APP.")]
_Store = Annotated[str | None, Parameter(help="sqlite:///FILE or postgresql://…; default the app's own.")]


async def command(
    name: _Name = None,
    /,
    *words: _Words,
    app: _Named = None,
    store: _Store = None,
    as_json: AsJson = False,
) -> None:
    """Call a command of the app here, in a workspace of its own, and print what it returns.

    Where a node has the store this process is its client; else it is the store's node as long as the command takes.

    Args:
        name: Which command; all are listed with their params when it is omitted.
        *words: Its own params.
        app: MODULE:ATTRIBUTE of the app.
        store: Where runs are kept.
        as_json: Print JSON.

    Raises:
        AppImportError: No app is named, or it cannot be imported.
        NotFoundError: There is no such command.
        ValidationError: The params are not acceptable; nothing was called.
        ExecutionFailedError: It raised.
    """
    loaded = named_app(app)
    if name is None:
        _show(loaded.commands.all(), loaded, as_json=as_json)
        return
    loaded.configure(store=store)
    options, others = words_as_options(words)
    if others:
        raise ValidationError(f"command {name!r} takes its params by name: --NAME {others[0]}")
    params = loaded.commands.get(name).arguments.read(options, loaded.has_service)
    role = "client" if (loaded.store_url or "").startswith("postgres") else "auto"
    async with loaded.open(role=role), loaded.workspace() as ws:
        value = await _called(ws.run_command(name, **params), name)
    if as_json:
        show_json(value)
    elif value is not None:
        say(value if isinstance(value, str) else repr(value))


def named_app(name: str | None) -> App:
    """The app that is meant, with all that its modules declare; nothing is opened.

    Args:
        name: MODULE:ATTRIBUTE, or None for the one that the surroundings name.

    Raises:
        AppImportError: None is named, or it cannot be imported.
    """
    found = name or app_name()
    if found is None:
        raise AppImportError("no app is named: --app MODULE:ATTRIBUTE, or set PIECEWORK_APP")
    loaded = load_app(found)
    loaded.load()
    return loaded


async def _called(call: Any, name: str) -> Any:
    try:
        return await call
    except PieceworkError:
        raise
    except Exception as error:
        text = f"command {name!r} failed: {type(error).__name__}: {error}{place_of(error)}"
        raise ExecutionFailedError(text) from error


def _show(commands: Sequence[Command], app: App, *, as_json: bool) -> None:
    told: list[dict[str, Any]] = [
        {
            "name": one.name,
            "params": [
                {"name": p.name, "required": p.required, "type": _type(p.annotation)}
                for p in one.arguments.own(app.has_service)
            ],
            "text": one.text,
        }
        for one in commands
    ]
    if as_json:
        show_json({"items": told, "next_cursor": None})
        return
    rows = [(one["name"], " ".join(map(_option, one["params"])), one["text"]) for one in told]
    show_table(("command", "params", ""), rows, nothing="the app has no commands")


def _type(annotation: Any) -> str | None:
    return None if annotation is None else inspect.formatannotation(annotation)


def _option(param: dict[str, Any]) -> str:
    word = f"--{param['name'].replace('_', '-')}" + (f" {param['type']}" if param["type"] not in {None, "bool"} else "")
    return word if param["required"] else f"[{word}]"


def words_as_options(words: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Reads `--user-id 7 --deep --name=Ada` as options by the names of parameters; what is none comes second.

    An option without a value means true; one that is given several times has several.

    Args:
        words: As they stand on the command line.
    """
    options: dict[str, list[str]] = {}
    others: list[str] = []
    index = 0
    while index < len(words):
        word, index = words[index], index + 1
        if not word.startswith("--") or len(word) == 2:
            others.append(word)
            continue
        name, given, value = word[2:].partition("=")
        if not given and index < len(words) and not words[index].startswith("--"):
            value, index = words[index], index + 1
        elif not given:
            value = "true"
        options.setdefault(name.replace("-", "_"), []).append(value)
    return options, others
