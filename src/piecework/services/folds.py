"""What becomes of a notification, and of a digest that is mailed. Pure, like `run/folds`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from piecework.run.folds import decide_enqueue
from piecework.run.lifecycle import Status
from piecework.store.items import Notified
from piecework.store.records import Digest, Run

if TYPE_CHECKING:
    from piecework.store.draft import Draft
    from piecework.store.items import MailDigest, Notifying


def decide_notify(draft: Draft, asked: Notifying, now: int) -> Notified:
    """Adds a notification to its digest, which may be due earlier by it; sees to it that a run delivers it then."""
    item = asked.item
    digest = draft.get(Digest, item.digest.digest_id)
    if not asked.new:
        return Notified(due_at=digest.due_at, duplicate=True)
    first = not digest.last_id
    due_at = item.digest.due_at if first else min(digest.due_at, item.digest.due_at)
    draft.put(replace(digest, last_id=item.notification.notification_id, due_at=due_at))
    # One that is overdue is being delivered just now, or whoever was to deliver it has failed: then this one will.
    woken = first or digest.due_at <= now or due_at < digest.due_at
    if not woken or item.wake is None:
        return Notified(due_at=due_at)
    shared = None if asked.run_id is None else draft.find(Run, asked.run_id)
    if shared is not None and shared.status == Status.QUEUED:
        return Notified(due_at=due_at)
    decide_enqueue(draft, item.wake, now)
    return Notified(due_at=due_at, woken=True)


def decide_mail_digest(draft: Draft, item: MailDigest, now: int) -> bool:
    """Lets a digest go for the run that mails it, if nothing was added to what that one tells."""
    if draft.find(Run, item.mail.run.run_id) is not None:
        return True
    digest = draft.find(Digest, item.digest_id)
    if digest is None or digest.last_id != item.last_id:
        return False
    draft.remove(Digest, item.digest_id)
    decide_enqueue(draft, item.mail, now)
    return True
