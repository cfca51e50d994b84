"""How a command finds the node of a store, and what every such command takes."""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from cyclopts import Parameter

from piecework.app import App
from piecework.config import Settings, tool_setting
from piecework.configured import default_store
from piecework.desk import Desk
from piecework.importing import app_name, load_app
from piecework.run.link import LinkClient
from piecework.store.sqlite import sqlite_path
from piecework.store.values import encode_mapping

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from cyclopts import Token


class Ask(Protocol):
    """Asks a node one question."""

    async def __call__(self, op: str, **args: Any) -> Any:
        """Answers with JSON values; what is None is left out of the question."""
        ...


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Where:
    """Which node a command asks.

    Attributes:
        store: Its store.
        app: An application whose own store it is.
    """

    store: Annotated[str | None, Parameter(help="sqlite:///FILE or postgresql://…; default PIECEWORK_STORE.")] = None
    app: Annotated[str | None, Parameter(help="MODULE:ATTRIBUTE of an app, to ask the node of its store.")] = None

    def url(self) -> str:
        """The store: the one named, else the named app's own, else the default.

        Raises:
            AppImportError: The named app cannot be imported.
        """
        if self.store is not None:
            return self.store
        told = os.environ.get("PIECEWORK_STORE") or tool_setting("store")
        name = self.app or (None if told else app_name())
        own = load_app(name).store_url if name else None
        return own or default_store()


def _read_object(_kind: Any, tokens: Sequence[Token]) -> dict[str, Any]:
    text = tokens[0].value
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"this is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f'a JSON object such as {{"id": 7}} is needed, not {text:.40}')  # noqa: TRY004 - becomes a usage error
    return value


def _refuse(word: str) -> None:
    raise ValueError(f"this is not JSON: it has no word {word}")


JsonObject = Annotated[dict[str, Any], Parameter(converter=_read_object, accepts_keys=False, n_tokens=1)]
"""An option that is a JSON object."""

AsJson = Annotated[bool, Parameter(name="--json", help="Print JSON, for programs.", show_default=False)]
"""The option of every command that shows something."""


@asynccontextmanager
async def asking(where: Where) -> AsyncIterator[Ask]:
    """Finds the node of a file, or the server's database, for as many questions as there are.

    Args:
        where: Which node.

    Yields:
        Asks one: `await ask("runs.get", run_id=…)`; what is None is left out.

    Raises:
        NoNodeError: There is none of that file.
        StoreUnavailableError: The server cannot be reached.
    """
    url = where.url()
    if not url.startswith("sqlite:"):
        # Everybody reaches a server: this process is a client of it by itself, and no node has to be asked.
        async with App("piecework", store=url).open(role="client") as app:
            desk = Desk(app)

            async def answer(op: str, **args: Any) -> Any:
                """Answers by itself."""
                given = _given(args)
                encode_mapping(given, what=op)
                return await desk.answer(op, given)

            yield answer
        return
    timeout_seconds = Settings.load().connect_timeout_seconds
    async with await LinkClient.connect(sqlite_path(url).absolute(), timeout_seconds=timeout_seconds) as link:

        async def ask_link(op: str, **args: Any) -> Any:
            """Asks the node."""
            return await link.ask(op, **_given(args))

        yield ask_link


async def ask(where: Where, op: str, **args: Any) -> Any:
    """Asks the node of a file, or the server's database, one question; what is None is left out.

    Args:
        where: Which node.
        op: What for; see `piecework.desk`.
        **args: With what.

    Raises:
        NoNodeError: There is none of that file.
        StoreUnavailableError: The server cannot be reached.
        PieceworkError: The node's answer.
    """
    async with asking(where) as one:
        return await one(op, **args)


def _given(args: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in args.items() if value is not None}
