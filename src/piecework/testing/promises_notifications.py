"""What a store promises about notifications: each is told once, those alike as one, and nobody is forgotten."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from piecework.clock import SECOND
from piecework.services.folds import decide_mail_digest, decide_notify
from piecework.store.items import MailDigest, Notified
from piecework.store.verbs.notifications import mail_digest, notify
from piecework.testing.rows import job, notification

if TYPE_CHECKING:
    from piecework.testing.verbs import Verbs

ADA = "ada@example.org"
BOB = "bob@example.org"


class NotificationPromises:
    """`notify` and `mail_digest`."""

    async def test_a_notification_waits_for_its_digest(self, verbs: Verbs) -> None:
        """The first notification says when its digest is due, and makes the run that delivers it then."""
        outcome = await verbs.notify(notification(due_at=verbs.now + SECOND))
        assert outcome == Notified(due_at=verbs.now + SECOND, woken=True)
        assert (await verbs.due_digests(), await verbs.claim()) == ([], [])
        verbs.now += SECOND
        assert [digest.email for digest in await verbs.due_digests()] == [ADA]
        assert len(await verbs.claim()) == 1

    async def test_further_notifications_go_along(self, verbs: Verbs) -> None:
        """While a digest waits, what comes goes along, in its order; those alike are counted, and no run is made."""
        await verbs.notify(notification(due_at=verbs.now + SECOND))
        for body in (b"World", b"Hello", b"\xc3\xa4\x00"):
            outcome = await verbs.notify(notification(body=body, due_at=verbs.now + 2 * SECOND))
            assert outcome == Notified(due_at=verbs.now + SECOND)
        assert await verbs.told_by(ADA) == [(b"Hello", 2), (b"World", 1), (b"\xc3\xa4\x00", 1)]

    async def test_a_notification_can_hasten_its_digest(self, verbs: Verbs) -> None:
        """One that is due before its digest takes all of it along, by a run of its own."""
        await verbs.notify(notification(due_at=verbs.now + SECOND))
        assert await verbs.notify(notification(due_at=verbs.now)) == Notified(due_at=verbs.now, woken=True)
        assert [len(await verbs.due_digests()), len(await verbs.claim())] == [1, 1]

    async def test_an_overdue_digest_is_not_forgotten(self, verbs: Verbs) -> None:
        """What is added to a digest that nobody has delivered in time makes another run for it."""
        await verbs.notify(notification())
        verbs.now += SECOND
        late = await verbs.notify(notification(due_at=verbs.now + SECOND))
        assert (late.woken, late.due_at) == (True, verbs.now - SECOND)

    async def test_where_others_deliver_no_run_is_made(self, verbs: Verbs) -> None:
        """A notification without a run of its own is only kept."""
        assert await verbs.notify(notification(wake=False)) == Notified(due_at=verbs.now)
        assert (len(await verbs.due_digests()), await verbs.claim()) == (1, [])

    async def test_the_same_notification_again_is_none(self, verbs: Verbs) -> None:
        """A notification that is there already changes nothing, also within one batch."""
        one = notification("n-1")
        first, second = await verbs.together(notify, [one, one], decide_notify)
        again = await verbs.notify(one)
        assert [first.duplicate, second.duplicate, again.duplicate] == [False, True, True]
        assert (await verbs.told_by(ADA), len(await verbs.claim())) == ([(b"Hello", 1)], 1)

    async def test_what_is_told_once_is_not_told_again(self, verbs: Verbs) -> None:
        """A notification that is kept once is known when its digest has been mailed, and with it in one batch."""
        one, other = notification("n-1", once=True), notification("n-2", once=True)
        outcomes = await verbs.together(notify, [one, one, other], decide_notify)
        assert [outcome.duplicate for outcome in outcomes] == [False, True, False]
        (digest,) = await verbs.due_digests()
        assert await verbs.mail_digest(digest, run_id="mail-1")
        assert [(await verbs.notify(again)).duplicate for again in (one, other)] == [True, True]
        assert await verbs.due_digests() == []
        assert not (await verbs.notify(notification("n-1"))).duplicate

    async def test_digests_due_together_share_a_run(self, verbs: Verbs) -> None:
        """However many addresses are to be told at one moment, one run sees to it, as long as it has not begun."""
        people = [f"user-{number}@example.org" for number in range(20)]
        outcomes = await asyncio.gather(*(verbs.notify(notification(to=to, occurrence="x")) for to in people))
        assert sum(outcome.woken for outcome in outcomes) == 1
        assert len(await verbs.claim()) == 1
        assert (await verbs.notify(notification(to=BOB, occurrence="x"))).woken
        assert len(await verbs.due_digests()) == 21

    async def test_a_mailed_digest_is_gone(self, verbs: Verbs) -> None:
        """The run that mails a digest is made in the commit that forgets it; what comes then is for the next one."""
        await verbs.notify(notification("n-1"))
        (digest,) = await verbs.due_digests()
        assert await verbs.mail_digest(digest, run_id="mail-1")
        assert (await verbs.due_digests(), await verbs.told_by(ADA)) == ([], [])
        assert "mail-1" in {entry.run.run_id for entry in await verbs.claim()}
        assert (await verbs.notify(notification("n-2"))).woken

    async def test_what_was_not_read_is_not_forgotten(self, verbs: Verbs) -> None:
        """A digest to which something was added since it was read is not mailed, and nothing of it is lost."""
        await verbs.notify(notification())
        (digest,) = await verbs.due_digests()
        await verbs.notify(notification())
        assert not await verbs.mail_digest(digest, run_id="mail-1")
        assert (await verbs.told_by(ADA), await verbs.runs("mail-1")) == ([(b"Hello", 2)], [])

    async def test_a_digest_is_mailed_once(self, verbs: Verbs) -> None:
        """Of two that mail it at the same moment one does; the same one again is told so again."""
        await verbs.notify(notification())
        (digest,) = await verbs.due_digests()
        answers = await asyncio.gather(*(verbs.mail_digest(digest, run_id=f"mail-{n}") for n in range(5)))
        assert sum(answers) == 1
        made = f"mail-{answers.index(True)}"
        assert (await verbs.mail_digest(digest, run_id=made), len(await verbs.runs(made))) == (True, 1)

    async def test_digests_of_one_batch(self, verbs: Verbs) -> None:
        """Each digest of a batch is decided by itself; other addresses keep theirs."""
        for to in (ADA, BOB, "eve@example.org"):
            await verbs.notify(notification(to=to))
        ada, bob, eve = await verbs.due_digests()
        await verbs.notify(notification(to=BOB))
        batch = [MailDigest(digest_id=one.digest_id, last_id=one.last_id, mail=job()) for one in (ada, bob)]
        assert await verbs.together(mail_digest, batch, decide_mail_digest) == [True, False]
        assert [one.email for one in await verbs.due_digests()] == [BOB, eve.email]
        assert (await verbs.told_by(ADA), await verbs.told_by(eve.email)) == ([], [(b"Hello", 1)])
