"""The desk: looks at the newsroom several times a second, approves what waits, and knows when all is done."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from newsroom.view import FeedLine, Picture, RunLine

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from newsroom.opml import Subscription
    from newsroom.sink import Sink
    from piecework import App

FINAL = {"mailed", "expired"}
"""Statuses of an article with which its run is done."""


class Desk:
    """Watches an open newsroom and plays its editor.

    Args:
        app: The newsroom, open.
        subscriptions: The feeds that are read.
        sink: Where the mails arrive, when that is ours.
        pace_seconds: How long the editor takes over an article.

    Attributes:
        approved: The ids of the articles that were approved here.
    """

    def __init__(
        self, app: App, subscriptions: Iterable[Subscription], *, sink: Sink | None, pace_seconds: float = 0.5
    ) -> None:
        self._app = app
        self._sink = sink
        self._pace_seconds = pace_seconds
        self._started_at = datetime.now(UTC)
        self._started = self._next_approval = time.monotonic()
        self._feeds = {(feed.space, feed.piece_id): FeedLine(feed.piece_id) for feed in subscriptions}
        self._polls: dict[tuple[str, str], Counter[str]] = {key: Counter() for key in self._feeds}
        self._counted: set[str] = set()
        self._records: dict[tuple[str, str], Any] = {}
        self._articles: dict[str, Any] = {}
        self._by_run: dict[str, Any] = {}
        self._runs: dict[str, Any] | None = None
        self._mail_runs: list[Any] = []
        self._arrived = 0
        self._lines: list[str] = []
        self.approved: set[str] = set()

    async def look(self) -> Picture:
        """Looks everywhere once, and tells what there is and what has changed since the last look."""
        await self._look_at_articles()
        await self._look_at_feeds()
        await self._look_at_runs()
        self._look_at_mails()
        return self._picture()

    async def approve(self) -> None:
        """Approves one article whose run is paused, if the editor has had the time and there is one."""
        now = time.monotonic()
        if now < self._next_approval:
            return
        for run in sorted((self._runs or {}).values(), key=lambda run: str(run.created_at)):
            article = self._article_of(run)
            if run.status == "paused" and article and article.status == "waiting" and article.id not in self.approved:
                self._next_approval = now + self._pace_seconds
                await self._app.publish(
                    "article.approved", {"id": article.id}, id=f"approved:{article.id}", space=article.space
                )
                self.approved.add(article.id)
                self._lines.append(f"approved: {article.title}")
                return

    def pending(self, expected: Collection[str] = ()) -> list[str]:
        """Tells what is still to come; empty when all is done.

        Args:
            expected: Ids of articles that have to be there in the end.
        """
        unread = [f"{space}/{feed}" for (space, feed), polls in self._polls.items() if not polls]
        lost = {run.run_id for run in self._lost_runs()}
        unfinished = [row for row in self._articles.values() if row.status not in FINAL and row.run_id not in lost]
        unknown = len(set(expected) - self._articles.keys())
        mails = sum(run.status not in {"completed", "failed", "aborted"} for run in self._mail_runs)
        runs = sum(run.status in {"queued", "running"} for run in (self._runs or {}).values())
        told = {
            f"feeds that were not read: {', '.join(unread)}": unread,
            f"articles that have not come in: {unknown}": unknown,
            f"articles that are not through: {len(unfinished)}": unfinished,
            f"editorial runs under way: {runs}": runs,
            f"mails that are not delivered: {mails}": mails,
        }
        return [sentence for sentence, there_are in told.items() if there_are]

    def lost(self) -> list[str]:
        """Tells what will never come: editorial runs and mails that failed, and feeds when none could be read."""
        lines = [f"editorial {self._title(run)!r} {run.status}: {_words(run.error)}" for run in self._lost_runs()]
        lines += [f"mail {run.run_id} {run.status}: {_words(run.error)}" for run in self._mail_runs if _failed(run)]
        if self._feeds and len(self._failing()) == len(self._feeds):
            lines.append("not one of the feeds could be read")
        return lines

    def summary(self, *, intended: Collection[tuple[str, str]] = ()) -> list[str]:
        """Tells what came of it all.

        Args:
            intended: Space and name of the feeds that are broken on purpose.
        """
        rows = self._articles.values()
        through = sum(row.status in FINAL for row in rows)
        seconds = time.monotonic() - self._started
        lines = [f"newsroom: {len(rows)} articles, {through} through, {seconds:.0f} seconds"]
        lines += [self._space_summary(space) for space in self._spaces()]
        runs = (self._runs or {}).values()
        delivered = sum(run.status == "completed" for run in self._mail_runs)
        arrived = f", {self._arrived} of them arrived here" if self._sink else ""
        paused = sum(run.status == "paused" or run.resume_count > 0 for run in runs)
        lines.append(f"editorial: {len(runs)} runs, {paused} paused, {len(self.approved)} approved here")
        lines.append(f"mails: {delivered} delivered{arrived}")
        for (space, feed), reason in self._failing().items():
            as_meant = " (broken on purpose: its neighbours did not notice)" if (space, feed) in intended else ""
            lines.append(f"failing: {space}/{feed}: {reason}{as_meant}")
        return lines

    async def _look_at_articles(self) -> None:
        async with self._app.workspace() as ws:
            self._articles = {row.id: row for row in await ws.database.articles.all()}
        self._by_run = {row.run_id: row for row in self._articles.values()}

    async def _look_at_feeds(self) -> None:
        for space in self._spaces():
            for record in await self._app.pieces.list(space=space):
                key = (record.space, record.piece_id)
                if key in self._feeds:
                    await self._look_at_feed(key, record)

    async def _look_at_feed(self, key: tuple[str, str], record: Any) -> None:
        due = record.next_run_at
        left = None if due is None else (due - datetime.now(UTC)).total_seconds()
        line = self._feeds[key]
        if record.last_run_at != self._records.get(key):
            self._records[key] = record.last_run_at
            for run in sorted(await self._app.pieces.runs(*key), key=lambda run: str(run.ended_at)):
                if run.ended_at is None or run.ended_at < self._started_at or run.run_id in self._counted:
                    continue
                self._counted.add(run.run_id)
                outcome = run.outcome or run.status
                self._polls[key][outcome] += 1
                before, line = line, FeedLine(key[1], outcome, _told(run))
                if (line.outcome, line.detail) != (before.outcome, before.detail):
                    mark = "failed: " if run.outcome == "failed" else ""
                    self._lines.append(f"{key[0]}/{key[1]}: {mark}{line.detail}")
        self._feeds[key] = FeedLine(line.piece_id, line.outcome, line.detail, left)

    async def _look_at_runs(self) -> None:
        runs = await self._app.runtime.list_all_runs(workflow="editorial")
        self._mail_runs = list(await self._app.runtime.list_all_runs(workflow="send-mail"))
        first_look, before = self._runs is None, self._runs or {}
        self._runs = {run.run_id: run for run in sorted(runs, key=lambda run: str(run.created_at), reverse=True)}
        for run in reversed(self._runs.values()):
            known = before.get(run.run_id)
            if known is not None and known.status == run.status:
                continue
            if run.status == "paused":
                self._lines.append(f"editorial paused: {self._title(run)} (waits for article.approved)")
            elif run.status in {"completed", "failed", "aborted"} and not first_look:
                reason = f" ({_words(run.error)})" if run.error else ""
                self._lines.append(f"editorial {run.status}: {self._title(run)}{reason}")

    def _look_at_mails(self) -> None:
        for mail in self._sink.mails[self._arrived :] if self._sink else []:
            self._arrived += 1
            self._lines.append(f"mail arrived: {mail.subject} (for {', '.join(mail.to)})")

    def _picture(self) -> Picture:
        lines, self._lines = tuple(self._lines), []
        runs = list((self._runs or {}).values())[:8]
        return Picture(
            spaces={space: self._feeds_of(space) for space in self._spaces()},
            runs=tuple(RunLine(self._title(run), run.space, run.status) for run in runs),
            mails=tuple(mail.subject for mail in self._sink.mails) if self._sink else (),
            articles=len(self._articles),
            mailed=sum(row.status in FINAL for row in self._articles.values()),
            happened=lines,
            elapsed_seconds=time.monotonic() - self._started,
        )

    def _space_summary(self, space: str) -> str:
        polls: Counter[str] = sum((self._polls[key] for key in self._feeds if key[0] == space), Counter())
        rows = [row for row in self._articles.values() if row.space == space]
        return (
            f"{space}: {len(self._feeds_of(space))} feeds read {polls.total()} times "
            f"({polls['success']} answered, {polls['skipped']} not modified, {polls['failed']} failed), "
            f"{len(rows)} articles, {sum(row.status == 'mailed' for row in rows)} mailed"
        )

    def _spaces(self) -> list[str]:
        return sorted({space for space, _ in self._feeds})

    def _feeds_of(self, space: str) -> tuple[FeedLine, ...]:
        return tuple(line for key, line in self._feeds.items() if key[0] == space)

    def _failing(self) -> dict[tuple[str, str], str]:
        return {key: line.detail for key, line in self._feeds.items() if line.outcome == "failed"}

    def _lost_runs(self) -> list[Any]:
        return [run for run in (self._runs or {}).values() if _failed(run)]

    def _article_of(self, run: Any) -> Any:
        return self._by_run.get(run.run_id)

    def _title(self, run: Any) -> str:
        article = self._article_of(run)
        return str(article.title) if article is not None else "an article that has just come in"


def _failed(run: Any) -> bool:
    return run.status in {"failed", "aborted"}


def _told(run: Any) -> str:
    if run.outcome == "success":
        new = (run.result or {}).get("new", 0)
        return f"{new} new article{'' if new == 1 else 's'}" if new else "nothing new"
    if run.outcome == "failed":
        return _words(run.error)
    return {"skipped": "not modified", "retry_after": "asked to come later"}.get(run.outcome, str(run.outcome))


def _words(error: Any) -> str:
    """What an error says, whether it is kept as text, as a mapping or as an object."""
    if isinstance(error, dict):
        return str(error.get("message", error))
    return str(getattr(error, "message", error))
