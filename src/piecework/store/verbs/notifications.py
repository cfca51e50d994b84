"""Notifications: `notify` and `mail_digest`. A digest's row is locked first; all that it tells is changed under it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from piecework.store.contract import Change, Delete, Failure, InsertMissing, Lock, Read, StartAgain
from piecework.store.draft import Draft
from piecework.store.items import Notifying
from piecework.store.records import Digest, Notification, Occurrence
from piecework.store.verbs.loading import conclude, decided, load_runs

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from piecework.store.contract import Decide, Request, Script
    from piecework.store.items import Enqueue, MailDigest, Notify


def notify(items: Sequence[Notify], decide: Decide, now: int) -> Script:
    """Keeps notifications for the digests of their addresses, and makes the runs that will deliver those.

    A notification that is there already changes nothing, and one that says `once` not even when it was there before.
    What is due at the same moment shares a run, as long as that has not begun.
    """
    draft = Draft()
    digests = {item.digest.digest_id: item.digest for item in items}
    keys = [(key,) for key in sorted(digests)]
    yield InsertMissing([digests[key] for (key,) in keys], "digest_id")
    found: list[Digest] = yield Lock(Digest, keys)
    if len(found) < len(keys):  # it was there, and was mailed before it could be locked
        yield StartAgain()
    draft.load(Digest, keys, found)
    rows = {item.notification.notification_id: item.notification for item in items}
    stored: list[Notification] = yield InsertMissing(list(rows.values()), "notification_id")
    before = yield from _before(items, now)
    yield from _take_back([row for row in stored if row.notification_id in before])
    new = {row.notification_id for row in stored} - before
    outcomes: list[Any] = draft.fold((yield from _asked(draft, items, new, now)), decide, now)
    for key in keys:
        digest = draft.find(Digest, *key)
        if digest is not None and not digest.last_id:  # made for what was told before
            draft.remove(Digest, *key)
    yield from conclude(draft)
    yield from _forget_failed(items, outcomes)
    return outcomes


def _before(items: Sequence[Notify], now: int) -> Generator[Request, Any, set[str]]:
    """Which of those that are to be kept once were kept before, whatever became of them."""
    wanted = sorted({item.notification.notification_id for item in items if item.once})
    if not wanted:
        return set()
    rows: list[Occurrence] = yield InsertMissing([Occurrence(_once(key), key, now) for key in wanted], "occurrence")
    return set(wanted) - {row.run_id for row in rows}


def _take_back(rows: Sequence[Notification]) -> Generator[Request, Any, None]:
    if rows:
        yield Delete(Notification, [row.identity() for row in rows])


def _forget_failed(items: Sequence[Notify], outcomes: Sequence[Any]) -> Generator[Request, Any, None]:
    """Lets what could not be decided come again."""
    failed = {
        _once(item.notification.notification_id)
        for item, outcome in zip(items, outcomes, strict=True)
        if item.once and isinstance(outcome, Failure)
    }
    if failed:
        yield Delete(Occurrence, [(key,) for key in sorted(failed)])


def _once(notification_id: str) -> str:
    return f"notified:{notification_id}"


def _asked(draft: Draft, items: Sequence[Notify], new: set[str], now: int) -> Generator[Request, Any, list[Notifying]]:
    """Finds the run that each shares with others, and locks it: a claim that comes now sees what this commits."""
    wakes = [item.wake for item in items if item.wake is not None and _wakes(draft, item, now)]
    runs = yield from _runs_of(wakes, now)
    yield from load_runs(draft, {*runs.values(), *(wake.run.run_id for wake in wakes)})
    asked: list[Notifying] = []
    for item in items:
        identity = item.notification.notification_id
        asked.append(Notifying(item=item, new=identity in new, run_id=_shared(item.wake, runs)))
        new.discard(identity)  # the second of two alike in one batch is a repeat
    return asked


def _runs_of(wakes: Sequence[Enqueue], now: int) -> Generator[Request, Any, dict[str, str]]:
    """Which run each occurrence was made for first; of one that is just being forgotten nobody knows."""
    first: dict[str, Occurrence] = {}
    for wake in wakes:
        if wake.occurrence is not None:
            first.setdefault(wake.occurrence, Occurrence(wake.occurrence, wake.run.run_id, now))
    if not first:
        return {}
    rows: list[Occurrence] = yield InsertMissing(list(first.values()), "occurrence")
    left = sorted(first.keys() - {row.occurrence for row in rows})
    if left:
        rows = [*rows, *(yield Read("occurrences_by_key", {"keys": left}, Occurrence))]
    return {row.occurrence: row.run_id for row in rows}


def _wakes(draft: Draft, item: Notify, now: int) -> bool:
    digest = draft.get(Digest, item.digest.digest_id)
    return not digest.last_id or digest.due_at <= now or item.digest.due_at < digest.due_at


def _shared(wake: Enqueue | None, runs: dict[str, str]) -> str | None:
    return None if wake is None or wake.occurrence is None else runs.get(wake.occurrence)


def mail_digest(items: Sequence[MailDigest], decide: Decide, now: int) -> Script:
    """Ends digests: the run that mails one is made, and what it tells is forgotten, in one commit.

    Answers False, and changes nothing, for a digest that has gone or to which something was added since it was read.
    """
    draft = Draft()
    keys = sorted({(item.digest_id,) for item in items})
    draft.load(Digest, keys, (yield Lock(Digest, keys)))
    yield from load_runs(draft, [item.mail.run.run_id for item in items])
    outcomes = yield from decided(draft, items, decide, now)
    told = {
        item.digest_id
        for item, outcome in zip(items, outcomes, strict=True)
        if outcome and not isinstance(outcome, Failure) and draft.find(Digest, item.digest_id) is None
    }
    if told:
        yield Change("delete_notifications", {"digest_ids": sorted(told)})
    return outcomes
