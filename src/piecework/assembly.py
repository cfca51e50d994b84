"""Wires what an open app consists of. A node runs runs; a client has the same parts, but claims and decides nothing.

`App` declares and opens; here is which part knows which. Closed from the bottom up: runs, their workers, what was
spawned, the workflows' services, the store.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from piecework.clock import StoreClock
from piecework.desk import Desk
from piecework.ids import new_id
from piecework.run.dispatcher import Dispatcher
from piecework.run.folds_events import decide_fanout
from piecework.run.intake import Intake
from piecework.run.link_server import LinkServer
from piecework.run.news import News
from piecework.run.node import Node
from piecework.run.retention import Retention
from piecework.services.bot import Bot
from piecework.services.declared_job import DeclaredJob
from piecework.services.job import Jobs
from piecework.services.mailing import JOB, Mailing
from piecework.services.notifications import JOB as DELIVER
from piecework.services.notifications import Notifications
from piecework.space.kind import PieceKind
from piecework.space.manager import Spaces
from piecework.space.overdue import Overdue
from piecework.space.service import PieceService
from piecework.space.standing import is_wanted, tell
from piecework.space.supply import WorkerSupply
from piecework.space.waking import PieceEvents
from piecework.store.sqlite import SqliteStore
from piecework.telemetry.redaction import Redaction, secret_values
from piecework.workflow.catalogue import Catalogue
from piecework.workflow.executor import Executor
from piecework.workflow.hot import HotRuns
from piecework.workflow.runtime import Runtime, wired

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from piecework.bus.subscriptions import EventBus
    from piecework.config import Settings
    from piecework.desk_form import OpenApp
    from piecework.process import protocol
    from piecework.process.address import Address
    from piecework.process.lease import Lease
    from piecework.run.kind import Kind
    from piecework.services.declared_job import JobDefinition
    from piecework.services.transport import Transport
    from piecework.space.piece import PieceDefinition
    from piecework.store.contract import Store
    from piecework.workspace.context import Host


@dataclass(slots=True)
class Parts:
    """What an open app consists of; a client's node claims nothing and its dispatcher never starts.

    Attributes:
        link: Where clients of a file's node ask; None where there is none.
        serving: Whether this is a node.
    """

    store: Store
    node: Node
    intake: Intake
    dispatcher: Dispatcher
    retention: Retention
    runtime: Runtime
    pieces: PieceService
    piece_events: PieceEvents
    overdue: Overdue
    jobs: Jobs
    bot: Bot
    spaces: Spaces
    link: LinkServer | None
    notifications: Notifications
    mail: Transport
    serving: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What the parts need of the app's declarations.

    Attributes:
        app: For workspaces.
        desk_app: For whoever asks over the link.
        bus: Its subscribers see accepted events.
        definitions: Its pieces, by integration.
        jobs: Its jobs, by name.
        env: The app's layer of variables.
        address: How workers import the app; None where it has no pieces.
        make_init: What is in force in a worker.
        lease: What a node's renewals put off: when its workers end without another word of it.
        version: Of Piecework.
        door: The door to workflows that somebody made before, and who is to be wired; None has one made.
    """

    app: Host
    desk_app: OpenApp
    bus: EventBus
    definitions: Mapping[str, PieceDefinition]
    jobs: Mapping[str, JobDefinition]
    env: Mapping[str, str | None]
    address: Address | None
    make_init: Callable[[str], protocol.Init]
    lease: Lease
    version: str
    door: Runtime | None = None


def assemble(declared: Declared, store: Store, settings: Settings, transport: Transport, *, serving: bool) -> Parts:
    """Makes the parts of a node, or (not `serving`) of a client; nothing runs yet."""
    clock = StoreClock(declared.app.clock, lambda: store.clock_offset)
    news = News(shared=store.shared)
    catalogue = Catalogue()
    executor = Executor(
        declared.app,
        catalogue,
        crash_limit=settings.crash_limit,
        abort_grace_seconds=settings.abort_grace_seconds,
        hook_timeout_seconds=settings.hook_timeout_seconds,
        payload_limit_bytes=settings.payload_limit_bytes,
        resumes_limit=settings.max_resumes_without_progress,
        hot=HotRuns(declared.app.clock, window_seconds=settings.pause_window_seconds, limit=settings.hot_runs_limit),
    )
    desk = Desk(declared.desk_app)
    supply = None
    if declared.address is not None and serving:
        supply = WorkerSupply(
            declared.address,
            settings,
            make_init=declared.make_init,
            lease=declared.lease,
            answer=lambda op, args, space: desk.answer_worker(op, args, space=space),
            on_log=lambda line, space: pieces.on_log(line, space),  # noqa: PLW0108 - made a few lines below
            clock=clock,
        )
    spaces = Spaces(supply, settings, declared.app.clock)
    spaces.is_wanted = partial(is_wanted, store)
    pieces = PieceKind(declared.definitions, spaces, settings)
    jobs = Jobs(
        {
            JOB: Mailing(transport, settings.mail_retry_seconds),
            **{name: DeclaredJob(job, declared.app, settings.crash_limit) for name, job in declared.jobs.items()},
        },
        lambda: node,
    )
    kinds: dict[str, Kind] = {kind.name: kind for kind in (executor, pieces, jobs)}
    notifications = Notifications(
        store,
        clock,
        lambda: node.wake(),  # noqa: PLW0108 - made a few lines below
        title=str(declared.app.config.get("title", declared.app.name)),
        sender=transport.sender,
        delivers=lambda: jobs.carries_out(DELIVER, notifications),  # one of the user's has its own schedule
    )
    jobs.add_built_in(DELIVER, notifications)
    node = Node(
        new_id(),
        store,
        kinds,
        clock,
        news,
        places=settings.space_concurrency,
        lease_seconds=settings.lease_seconds,
        forsaken_seconds=settings.hook_timeout_seconds,
        version=declared.version,
        redaction=_redaction(declared, settings),
        strict_timeline=settings.strict_timeline,
    )
    node.tell_spaces = partial(tell, spaces)
    spaces.on_new_code = node.wake
    bot = jobs.schedules = Bot(declared.jobs, store, node, clock)
    executor.attach(node)
    pieces.attach(node)
    intake = Intake(store, kinds, node, declared.bus, clock, settings, deciding=serving)
    dispatcher = Dispatcher(store, kinds, intake, clock, partial(decide_fanout, intake.matches))
    piece_events = PieceEvents(declared.definitions, store, node)
    if serving:
        intake.on_left = dispatcher.wake
        dispatcher.others = (piece_events.look,)
        pieces.on_told = dispatcher.wake
    store.listen(lambda topics: _hear(topics, node, dispatcher))
    return Parts(
        store=store,
        node=node,
        intake=intake,
        dispatcher=dispatcher,
        retention=Retention(
            store, clock, retention_seconds=settings.retention_seconds, dedup_seconds=settings.dedup_seconds
        ),
        runtime=wired(
            declared.door, declared.app, store, node, intake, executor, catalogue, clock, declared.env, serving=serving
        ),
        pieces=PieceService(declared.definitions, store, node, clock, spaces),
        piece_events=piece_events,
        overdue=Overdue(store, node, clock, declared.definitions),
        jobs=jobs,
        bot=bot,
        spaces=spaces,
        link=LinkServer(desk.answer, beside=store.path) if isinstance(store, SqliteStore) else None,
        notifications=notifications,
        mail=transport,
        serving=serving,
    )


def _redaction(declared: Declared, settings: Settings) -> Redaction:
    """What no log line and no timeline shows: what is called secret, and variables."""
    given = declared.env is not os.environ
    return Redaction(settings.redacted_names, secret_values(declared.env, given=given))


def _hear(topics: frozenset[str], node: Node, dispatcher: Dispatcher) -> None:
    node.hear(topics)
    if topics & {"*", "inbox", "pending"}:
        dispatcher.wake()
