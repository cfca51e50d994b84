"""The names and fields of everything observable, in one place.

A signal is a log line now; counters and spans hang on the same names later. Every signal that belongs to a run,
a piece or a space carries `run_id`, `piece_id` and `space`: `logs.bound` puts them on each line of the code within.
"""

from __future__ import annotations

from typing import Any, Final

from piecework.telemetry.logs import get_logger

NODE_STARTED: Final = "node.started"  # node_id store pid
NODE_STOPPING: Final = "node.stopping"  # runs grace_seconds: it waits for runs; what is left then is interrupted
NODE_STOPPED: Final = "node.stopped"  # node_id
NODE_TROUBLE: Final = "node.trouble"  # what error: a loop of the node failed and goes on
NODE_LOST: Final = "node.lost"  # store pid: a client of role "auto" looks for another, or becomes it
RUN_STARTED: Final = "run.started"  # run_id kind name space attempt
RUN_PAUSED: Final = "run.paused"  # run_id waiting_for
RUN_RESUMED: Final = "run.resumed"  # run_id reason
RUN_ENDED: Final = "run.ended"  # run_id status error
RUN_INTERRUPTED: Final = "run.interrupted"  # run_id error: it goes on later, uncharged
RUN_CLOSED: Final = "run.closed"  # run_id: its end is settled, its place is free, whoever waits for it is told
RUN_PRUNED: Final = "run.pruned"  # run_id: nothing of it is kept here any more but its rows
HOOK_FAILED: Final = "hook.failed"  # hook workflow_id run_id error: what its run came to stands
HOOKS_SKIPPED: Final = "hooks.skipped"  # run_id workflow_id: it has ended, and no node has its code
RUN_LOST: Final = "run.lost"  # run_id error: the run is somebody else's now
EVENT_DROPPED: Final = "event.dropped"  # workflow_id outcome reason count: since the last such line
EVENT_ACCEPTED: Final = "event.accepted"  # event_id type outcomes
OBSERVER_FAILED: Final = "observer.failed"  # pattern event_id error
PREDICATE_FAILED: Final = "predicate.failed"  # workflow_id trigger_id event_id error: counts as no match
SERVICE_SHADOWED: Final = "service.shadowed"  # workflow_id service: in its runs it hides the app's of that id
SPACE_STARTED: Final = "space.started"  # space pid
SPACE_HIBERNATED: Final = "space.hibernated"  # space reason
SPACE_DIED: Final = "space.died"  # space pid status
SPACE_FAILED: Final = "space.failed"  # space error again_seconds: no worker could be started; nobody is charged
SPACE_BROKEN: Final = "space.broken"  # space error again_seconds: too many of its workers ended by themselves
SPACE_MENDED: Final = "space.mended"  # space: it was broken, and a run of it has come back
SPACE_BLOCKED: Final = "space.blocked"  # space pid runs: the worker's loop does not turn
SPACE_UNBLOCKED: Final = "space.unblocked"  # space pid after_seconds
ZYGOTE_REPLACED: Final = "zygote.replaced"  # pid: workers of the old one finish what they have
ZYGOTE_STARTED: Final = "zygote.started"  # pid
ZYGOTE_FINDINGS: Final = "zygote.findings"  # target findings: what its import left behind, and workers cannot share
PIECE_ENDED: Final = "piece.ended"  # space piece_id run_id outcome error
PIECE_BROKEN: Final = "piece.broken"  # space piece_id run_id error: it is half-open, or has stopped for good
PIECE_RECOVERED: Final = "piece.recovered"  # space piece_id run_id
PIECE_LATE: Final = "piece.late"  # space piece_id run_id error: what an update started failed when it had ended
TIMELINE_GAP: Final = "timeline.gap"  # run_id lines lost error: lines that were not written; lost: all on this node
MAIL_KEPT: Final = "mail.kept"  # run_id: in the outbox of this process, and nowhere else
MAIL_SENT: Final = "mail.sent"  # run_id message_id
MAIL_REFUSED: Final = "mail.refused"  # run_id error retry_in_seconds
OUTBOX_LEFT: Final = (
    "outbox.left"  # transaction_id rows error: after the commit they were not taken; they are tried again
)
OUTBOX_REFUSED: Final = "outbox.refused"  # row_id kind item_id attempts error retry_in_seconds
OUTBOX_DEAD: Final = "outbox.dead"  # row_id kind item_id attempts error: it is not tried again, and kept
OUTBOX_TROUBLE: Final = "outbox.trouble"  # what error: the store or the database failed, and is asked again
DIGESTS_MAILED: Final = "digests.mailed"  # run_id mails: of what people are told by and by, so many mails were made
CHILD_FAILED: Final = "workspace.child_failed"  # name error
SERVICE_FAILED: Final = "service.failed"  # service error: its build, rebuild or stream failed where nobody waits
SERVICE_NOT_RESTORED: Final = "service.not_restored"  # service error: of a bundle; its factory will be called
LISTENER_FAILED: Final = "service.listener_failed"  # event_name service error
MANY_ROWS: Final = "database.many_rows"  # table rows: read at once by all(); iterate() reads in batches
CLOSE_FAILED: Final = "workspace.close_failed"  # workspace_id errors

_log = get_logger()


def emit(signal: str, *, level: str = "info", **fields: Any) -> None:
    """Tells the world that something happened; never raises and never waits.

    Args:
        signal: One of the names above.
        level: Weight of the log line: debug, info, warning or error.
        **fields: What the signal is about.
    """
    getattr(_log, level)(signal, **fields)
