"""The services that every app has: `send_mail`, `notify`, `database`, `bot` and the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from piecework.container.registry import Recipe
from piecework.container.scope import Scope
from piecework.services import transactions
from piecework.services.bot import Bot
from piecework.services.data import CleanData, RollbackData
from piecework.services.tables import WorkspaceDatabase
from piecework.workspace.data import data_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from piecework.sending import Sending
    from piecework.services.database import Database
    from piecework.services.mail import SendMail
    from piecework.services.notify import Notify
    from piecework.workspace.workspace import Workspace


class BuiltIns:
    """Makes them when they are asked for.

    Args:
        app: Through which they send.
        sender: Tells whom mails come from, by the mail URL.
    """

    def __init__(self, app: Sending, *, sender: Callable[[], str | None]) -> None:
        self._app = app
        self._sender = sender
        # One for each workspace, however often it is asked for: it counts, so that two mails alike are two.
        self._mailers: WeakKeyDictionary[Workspace, SendMail] = WeakKeyDictionary()
        self._notifiers: WeakKeyDictionary[Workspace, Notify] = WeakKeyDictionary()

    def recipes(self) -> Iterator[Recipe]:
        """How each is made."""
        app = self._app
        yield Recipe("config", lambda: app.config, Scope.TRANSIENT)
        yield Recipe("environment", lambda: app.environment, Scope.TRANSIENT)
        yield Recipe("notify", self._notify, Scope.TRANSIENT)
        yield Recipe("notifications", lambda: app.notifications, Scope.TRANSIENT)
        yield Recipe("database", _workspace_database, Scope.RUN, provides=WorkspaceDatabase)
        yield Recipe("send_mail", self._send_mail, Scope.TRANSIENT)
        yield Recipe("bot", lambda: app.bot, Scope.APP, provides=Bot)

    def _send_mail(self, ctx: Any) -> SendMail:
        from piecework.services.attachments import limit_of
        from piecework.services.mail import SendMail  # the mail libraries are large, and few workspaces send mail

        ws: Workspace = ctx.workspace
        app, space, workspace_id = self._app, ws.space, ws.root.id  # not the workspace itself: it is to be forgotten

        async def enqueue(name: str, args: dict[str, Any], /, *, run_id: str) -> str:
            if transactions.of_workspace(workspace_id) is None:
                return await app.enqueue(name, args, run_id=run_id, space=space)
            await app.promise_job(workspace_id, name, args, run_id=run_id, space=space)
            return run_id

        if ws not in self._mailers:
            self._mailers[ws] = SendMail(
                enqueue,
                sender=self._sender(),
                key=ws.key,
                limit_bytes=limit_of(app.settings.payload_limit_bytes),
            )
        return self._mailers[ws]

    def _notify(self, ctx: Any) -> Notify:
        from piecework.services.notify import Notify  # it checks addresses by the mail libraries

        ws: Workspace = ctx.workspace
        app, space, workspace_id = self._app, ws.space, ws.root.id  # as above

        async def keep(**told: Any) -> None:
            told["space"] = space
            if transactions.of_workspace(workspace_id) is None:
                await app.keep_notification(**told)
            else:
                await app.promise_notification(workspace_id, told)

        if ws not in self._notifiers:
            self._notifiers[ws] = Notify(keep, key=ws.key)
        return self._notifiers[ws]


def _workspace_database(ctx: Any, application_database: Database) -> WorkspaceDatabase:
    ws: Workspace = ctx.workspace
    data = data_of(ws.overridden)
    if isinstance(data, RollbackData | CleanData):
        application_database = data.database_of(ws.root.id, ctx)
    database = WorkspaceDatabase(
        application_database, closed=lambda: ws.closed, workspace_id=ws.root.id, check_here=ws.check_here
    )
    ctx.on_cleanup(database.close)
    return database
