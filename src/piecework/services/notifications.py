"""Notifications in the store, and the job `deliver-notifications` that mails the digests that are due.

A notification is committed together with the run that will deliver its digest, so none is forgotten; a digest goes in
the commit that makes the run of its mail, so none is told twice. From there on it is a mail like any other.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from piecework.clock import SECOND, as_datetime, micros
from piecework.errors import PieceworkError, StoreError, ValidationError
from piecework.ids import new_id
from piecework.run.lifecycle import Status
from piecework.services.digest import BODIES_LIMIT, Told, due_at, subject_of, text_of
from piecework.services.folds import decide_mail_digest, decide_notify
from piecework.services.job import KIND, Again, Done
from piecework.services.mailing import JOB as SEND_MAIL
from piecework.store.items import Enqueue, MailDigest, Notified, Notify
from piecework.store.records import Digest, Notification, Run
from piecework.store.values import check_identifier, encode_mapping
from piecework.store.verbs.notifications import mail_digest, notify
from piecework.telemetry import signals

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import tzinfo

    from piecework.clock import Clock
    from piecework.services.job import Attempt, Verdict
    from piecework.store.contract import Store

JOB = "deliver-notifications"
"""The name of the runs that deliver what is due."""

LIMIT = 100
"""How many digests are looked at together, unless the job is told otherwise."""

_TRIES = 5
"""How often a digest is read anew to which something was added meanwhile; then the run that came with that mails it."""

_AGAIN_SECONDS = 60.0


class Notifications:
    """Keeps notifications, and mails digests; called with an attempt it is the job `deliver-notifications`.

    Args:
        store: Open.
        clock: Tells the store's time.
        wake: Tells the node that there is work.
        title: Who tells it, in subjects.
        sender: The address that mails come from; None leaves it to the transport.
        delivers: Whether runs of the job are to be made when something will be due; when not, somebody else sees to it,
            by a schedule.
        zone: Whose midnight counts; None means this machine's.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        wake: Callable[[], None],
        *,
        title: str,
        sender: str | None,
        delivers: Callable[[], bool] = lambda: True,
        zone: tzinfo | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._wake = wake
        self._title = title
        self._sender = sender
        self._delivers = delivers
        self._zone = zone

    async def add(
        self,
        *,
        notification_id: str,
        email: str,
        body: str,
        subject: str | None,
        frequency: str,
        force: bool,
        space: str | None,
        once: bool = False,
    ) -> None:
        """Keeps a notification and returns when it is durable; the same id twice is one as long as it waits.

        Args:
            notification_id: Names it.
            email: Whom to tell.
            body: The words.
            subject: One line, or None.
            frequency: One of `digest.FREQUENCIES`; of `none` nothing is kept.
            force: Whether they are to be told at once.
            space: The tenant: what is told in one space and in another are two digests.
            once: The same id twice is one also when it has been told, as long as ids of events are known.

        Raises:
            ValidationError: An id or the frequency is not acceptable.
            StoreError: It could not be written.
        """
        now = self._clock.now()
        moment = as_datetime(now)
        assert moment is not None, "there is a time"
        due = due_at(frequency, moment, force=force, zone=self._zone)
        if due is None:
            return
        due_micros = now if force else micros(due.timestamp())
        digest = Digest(
            digest_id=_named(space or "default", check_identifier(email, "email")),
            space=check_identifier(space or "default", "space"),
            email=email,
            last_id="",
            due_at=due_micros,
        )
        row = Notification(
            seq=None,
            notification_id=check_identifier(notification_id, "notification_id"),
            digest_id=digest.digest_id,
            alike=_named(body),
            subject=subject,
            body=body.encode(),
            created_at=now,
        )
        wake = self._wake_at(due_micros, shared=not force) if self._delivers() else None
        item = Notify(digest=digest, notification=row, wake=wake, once=once)
        await self._store.run(notify, item, decide_notify, now, self._woken)

    def check(self, args: dict[str, Any]) -> None:
        """Refuses arguments of the job that there are not.

        Raises:
            ValidationError: It takes a `limit` of 1 or more, and nothing else.
        """
        limit = args.get("limit", LIMIT)
        if args.keys() - {"limit"} or type(limit) is not int or limit < 1:
            raise ValidationError(f"{JOB} takes limit, a whole number of 1 or more, not {args!r:.80}", path="limit")

    async def __call__(self, attempt: Attempt) -> Verdict:
        """Delivers what is due; where the store cannot be written it is tried again a minute later."""
        self.check(attempt.args)
        try:
            mails = await self.deliver(limit=attempt.args.get("limit", LIMIT))
        except StoreError as error:
            return Again(_AGAIN_SECONDS, {}, error)
        signals.emit(signals.DIGESTS_MAILED, run_id=attempt.run_id, mails=mails)
        return Done({"mails": mails})

    async def deliver(self, *, limit: int = LIMIT) -> int:
        """Makes a mail of each digest that is due, however many there are, and tells how many it made.

        Args:
            limit: How many are looked at together.

        Raises:
            StoreError: The store could not be read or written; what was mailed until then stays so.
            PieceworkError: Of some digests no mail could be made; of all others it was.
        """
        now, after, after_id, mailed = self._clock.now(), 0, "", 0
        failed: list[Exception] = []
        while True:
            asked = {"now": now, "after": after, "after_id": after_id, "limit": limit}
            digests: list[Digest] = await self._store.read("due_digests", asked, Digest)
            outcomes = await asyncio.gather(*map(self._mail, digests), return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, StoreError) or not isinstance(outcome, bool | Exception):
                    raise outcome
                if isinstance(outcome, Exception):
                    failed.append(outcome)
                else:
                    mailed += outcome
            if len(digests) < limit:
                break
            after, after_id = digests[-1].due_at, digests[-1].digest_id
        if failed:
            raise PieceworkError(
                f"{mailed} digests were mailed and {len(failed)} could not be; the first: {failed[0]}. What they tell "
                "is kept: correct it, and enqueue the job again"
            ) from failed[0]
        return mailed

    async def _mail(self, digest: Digest) -> bool:
        """Has a run mail a digest; False where somebody else did, or will."""
        found: Digest | None = digest
        for _ in range(_TRIES):
            item = None if found is None else await self._mail_of(found)
            if found is None or item is None:
                return False
            if await self._store.run(mail_digest, item, decide_mail_digest, self._clock.now(), self._mailed):
                return True
            rows = await self._store.read("digests_by_id", {"digest_ids": [digest.digest_id]}, Digest)
            found = rows[0] if rows else None
        return False

    async def _mail_of(self, digest: Digest) -> MailDigest | None:
        from piecework.services.mail import build, domain_of, message_id  # with the mail libraries, which few need

        which = {"digest_id": digest.digest_id}
        rows = await self._store.read("notifications_of", which | {"limit": BODIES_LIMIT})
        ((_, count),) = await self._store.read("count_notifications", which)
        told = [Told(subject, bytes(body).decode(), times) for subject, body, times in rows]
        if not told:
            return None
        mail = await build(
            to=digest.email,
            subject=subject_of(told, count, self._title),
            text=text_of(told, count),
            sender=self._sender,
        )
        # The same for the same digest, whoever mails it: of two there is one.
        run_id = _named(digest.digest_id, digest.last_id)
        mail["message_id"] = message_id(run_id, domain_of(mail["sender"]))
        queued = Enqueue(run=_job(SEND_MAIL, run_id, digest.space), args=encode_mapping(mail, what="a digest"))
        return MailDigest(digest_id=digest.digest_id, last_id=digest.last_id, mail=queued)

    def _wake_at(self, moment: int, *, shared: bool) -> Enqueue:
        run = replace(_job(JOB, new_id(), "default"), due_at=moment)
        # What is due now may be looked at before this is committed, so it has a run of its own.
        return Enqueue(run=run, args=b"{}", occurrence=f"{JOB}@{moment // SECOND}" if shared else None)

    def _woken(self, outcome: Notified) -> None:
        if outcome.woken:
            self._wake()

    def _mailed(self, mailed: bool) -> None:
        if mailed:
            self._wake()


def _job(name: str, run_id: str, space: str) -> Run:
    return Run(
        run_id=run_id,
        kind=KIND,
        workflow_id=name,
        trigger_id="",
        pipeline_id="",
        slot_key=None,
        place=None,
        key_value=None,
        space=space,
        status=Status.QUEUED,
        stage=None,
        version=None,
        event_seq=None,
    )


def _named(*parts: str) -> str:
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:32]
