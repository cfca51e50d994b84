"""Commands: functions with a name that work in a fork of the caller's workspace, with params of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from piecework.errors import DuplicateKeyError, NotFoundError
from piecework.services.arguments import Arguments
from piecework.store.values import check_identifier
from piecework.workspace.inject import call_injected

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from piecework.workspace.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Command:
    """A command as it was declared.

    Attributes:
        name: What it is called by.
        fn: Async or sync.
        arguments: What it takes.
    """

    name: str
    fn: Callable[..., Any]
    arguments: Arguments

    @property
    def text(self) -> str:
        """What it does, in a line: the first of its function's docstring."""
        return (getattr(self.fn, "__doc__", None) or "").strip().partition("\n")[0]


class Commands:
    """The commands of an app, by name."""

    def __init__(self) -> None:
        self._commands: dict[str, Command] = {}

    def add(self, name: str, fn: Callable[..., Any]) -> None:
        """Takes a command in.

        Raises:
            DuplicateKeyError: There is one of that name.
            ValidationError: The name or the function is not acceptable.
        """
        check_identifier(name, "the name of a command")
        if name in self._commands:
            raise DuplicateKeyError(f"there is a command {name!r} already: name another", key=name)
        self._commands[name] = Command(name, fn, Arguments(f"command {name!r}", fn))

    def get(self, name: str) -> Command:
        """A command.

        Raises:
            NotFoundError: There is none; the message has the nearest names.
        """
        if name not in self._commands:
            raise NotFoundError.among("command", name, self._commands)
        return self._commands[name]

    def all(self) -> list[Command]:
        """All of them, by their names."""
        return [self._commands[name] for name in sorted(self._commands)]

    async def run(self, ws: Workspace, name: str, params: Mapping[str, Any], *, key: str | None = None) -> Any:
        """Calls a command in a fork of a workspace and gives what it returns.

        The fork shares the workspace's run services, and the transaction that the caller has open; its `params` are
        the command's, converted, and nothing of the caller's.

        Args:
            ws: The caller's.
            name: The command.
            params: Its own.
            key: The fork's idempotency key.

        Raises:
            NotFoundError: There is no such command.
            ValidationError: The params are not acceptable; nothing was called.
            Exception: Whatever the command raised.
        """
        command = self.get(name)
        given = command.arguments.checked(params, ws.container.has)
        async with ws.fork(params=given, key=key) as fork:
            return await call_injected(command.fn, fork, (), given)
