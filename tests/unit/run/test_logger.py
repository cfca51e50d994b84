"""Promises about the logger that a run's code is given."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading

import msgspec
import pytest

from piecework.errors import StoreFullError, TimelineGapError
from piecework.run.logger import LogBook, RunLogger, Timelines


@pytest.fixture
async def run(verbs):
    return await verbs.running()


def a_book(verbs, run):
    return LogBook(verbs.do, run.run_id, run.epoch, run.decision, run.attempt)


async def lines(verbs, run):
    return [entry for entry in await verbs.timeline(run.run_id) if entry.source == "logger"]


def told(entry):
    return msgspec.json.decode(entry.payload)


async def test_a_line_stands_in_the_timeline(verbs, run):
    """What code logs becomes a line of the run's timeline, with its level, place and fields."""
    book = a_book(verbs, run)
    RunLogger(book, "extract/read", run_id=run.run_id).info("extracted", pages=3)
    await book.flush()
    (entry,) = await lines(verbs, run)
    assert (entry.type, entry.path) == ("log.info", "extract/read")
    assert told(entry) == {"message": "extracted", "fields": {"run_id": run.run_id, "pages": 3}}


async def test_lines_keep_their_order(verbs, run):
    """Lines stand in the order in which they were written, however they were batched."""
    book = a_book(verbs, run)
    logger = RunLogger(book)
    for number in range(50):
        logger.debug("line", number=number)
        if number % 17 == 0:
            await book.flush()
    await book.flush()
    assert [told(entry)["fields"]["number"] for entry in await lines(verbs, run)] == list(range(50))


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
async def test_levels(verbs, run, level):
    """Each level is told as what it is."""
    book = a_book(verbs, run)
    getattr(RunLogger(book), level)("something")
    await book.flush()
    assert [entry.type for entry in await lines(verbs, run)] == [f"log.{level}"]


async def test_bound_fields(verbs, run):
    """A bound logger puts its fields on every line; the one it came from does not."""
    book = a_book(verbs, run)
    logger = RunLogger(book, "stage", site="a")
    logger.bind(page=1, site="b").info("one")
    logger.info("two")
    await book.flush()
    assert [told(entry)["fields"] for entry in await lines(verbs, run)] == [{"page": 1, "site": "b"}, {"site": "a"}]


@pytest.mark.parametrize("name", ["event", "message", "level", "path", "name", "book"])
async def test_a_field_may_have_any_name(verbs, run, name):
    """No name of a field is taken."""
    book = a_book(verbs, run)
    logger = RunLogger(book, "stage").bind(**{name: 1})
    logger.info("one", **{name: 2})
    await book.flush()
    assert [told(entry)["fields"] for entry in await lines(verbs, run)] == [{name: 2}]


async def test_fields_that_are_not_json(verbs, run):
    """A field that is not JSON is shown as text; hostile text is escaped; neither fails the run."""
    book = a_book(verbs, run)
    RunLogger(book).info("\x00\ud800", thing={1}, number=float("nan"), text="\ud800", fine=[1])
    await book.flush()
    (entry,) = await lines(verbs, run)
    shown = told(entry)
    assert shown["message"] == "\\x00\\ud800"
    assert shown["fields"] == {"thing": "{1}", "number": "nan", "text": "'\\ud800'", "fine": [1]}


async def test_a_line_goes_to_the_process_log_too(verbs, run, caplog):
    """The host's own logging sees every line that it wants to, without a run as well."""
    with caplog.at_level(logging.INFO, logger="piecework"):
        RunLogger(None, run_id="r-1").info("extracted", pages=3)
        RunLogger(None).debug("too quiet")
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == ("INFO", "extracted run_id='r-1' pages=3")


async def test_lines_of_a_superseded_owner_are_refused_quietly(verbs, run):
    """Who lost a run cannot write to its timeline, and is not failed for trying."""
    book = a_book(verbs, run)
    await verbs.claim("node-2", orphans=True)
    RunLogger(book).info("late")
    await book.flush()
    assert await lines(verbs, run) == []


class FullDisk:
    """A store that takes no line until there is room."""

    def __init__(self, verbs):
        self.full, self._verbs = True, verbs

    async def __call__(self, verb, item, decide):
        if self.full:
            raise StoreFullError("the disk is full")
        return await self._verbs.do(verb, item, decide)


async def types(verbs, run):
    return [entry.type for entry in await verbs.timeline(run.run_id)][2:]


@pytest.mark.covers("E55")
async def test_a_timeline_that_cannot_be_written_fails_nothing(verbs, run):
    """Lines that the store does not take are lost and counted; where they are missing an entry says how many."""
    disk = FullDisk(verbs)
    timelines = Timelines(disk)
    book = timelines.book(run)
    logger = RunLogger(book)
    for message in ("lost", "lost too"):
        logger.info(message)
        await book.flush()
    book.check()
    disk.full = False
    logger.info("kept")
    await book.flush()
    assert await types(verbs, run) == ["timeline:gap", "log.info"]
    gap, kept = (await verbs.timeline(run.run_id))[2:]
    assert (told(gap), told(kept)["message"], timelines.lost) == ({"lines": 2}, "kept", 2)


@pytest.mark.covers("E55")
async def test_a_gap_is_told_without_a_further_line(verbs, run):
    """A gap is marked at the next flush that succeeds, by whichever book of the run, and once."""
    disk = FullDisk(verbs)
    timelines = Timelines(disk)
    book = timelines.book(run)
    RunLogger(book).info("lost")
    await book.flush()
    assert await types(verbs, run) == []
    disk.full = False
    later = timelines.book(run)
    await later.flush()
    await book.flush()
    assert await types(verbs, run) == ["timeline:gap"]


@pytest.mark.covers("E55")
async def test_a_strict_timeline_ends_the_run(verbs, run):
    """Where timelines are strict a book that has lost lines says so with TIMELINE_GAP."""
    book = Timelines(FullDisk(verbs), strict=True).book(run)
    book.check()
    RunLogger(book).info("lost")
    await book.flush()
    with pytest.raises(TimelineGapError, match=run.run_id):
        book.check()


async def test_what_a_superseded_owner_cannot_write_is_no_gap(verbs, run):
    """The lines of an owner that lost the run are refused, and nobody is told that they are missing."""
    timelines = Timelines(verbs.do)
    book = timelines.book(run)
    await verbs.claim("node-2", orphans=True)
    RunLogger(book).info("late")
    await book.flush()
    assert (timelines.lost, timelines.missing(run.run_id)) == (0, 0)


async def test_secrets_are_taken_out_of_lines(verbs, run):
    """What is called a secret, and the variables of the workflow, stand in no line; also where a field is no JSON."""
    book = Timelines(verbs.do).book(run, {"KEY": "hush-hush"})
    RunLogger(book).info("hush-hush", password="open", thing={"hush-hush"})
    await book.flush()
    (entry,) = await lines(verbs, run)
    shown = told(entry)
    assert (shown["message"], shown["fields"]) == (
        "[redacted]",
        {"password": "[redacted]", "thing": "{'[redacted]'}"},
    )


async def test_lines_stand_beneath_the_decision_that_they_follow(verbs, run):
    """After a stage's commit lines go on beneath that decision, numbered from one."""
    book = a_book(verbs, run)
    logger = RunLogger(book)
    logger.info("before")
    await book.flush()
    book.decided(run.decision + 1, 0)
    logger.info("after")
    await book.flush()
    assert [(e.decision, e.attempt, e.ordinal) for e in await lines(verbs, run)] == [
        (run.decision, 1, 1),
        (run.decision + 1, 0, 1),
    ]


async def test_flush_without_lines(verbs, run):
    """Nothing to write is nothing to wait for."""
    await a_book(verbs, run).flush()


async def test_progress_shows_no_secrets(verbs, run):
    """What a step says of its progress is without secrets too, in the timeline and beside the run."""
    book = Timelines(verbs.do).book(run, {"KEY": "hush-hush"})
    book.progress(0.5, "with hush-hush", "a/step")
    await book.flush()
    (entry,) = [entry for entry in await verbs.timeline(run.run_id) if entry.type == "step:progress"]
    assert told(entry) == {"fraction": 0.5, "message": "with [redacted]"}
    assert msgspec.json.decode((await verbs.run(run.run_id)).progress)[:2] == [0.5, "with [redacted]"]


async def test_who_waits_for_lines_may_be_cancelled(verbs, run):
    """A line is written though whoever waits for it is cancelled before its writing has begun; nobody else is."""
    book = a_book(verbs, run)
    RunLogger(book).info("said")
    waiting = asyncio.ensure_future(book.flush())
    asyncio.get_running_loop().call_soon(waiting.cancel)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await book.flush()
    assert [told(entry)["message"] for entry in await lines(verbs, run)] == ["said"]


async def test_threads_lose_no_lines():
    """Lines that threads say while others are taken out to be written are written too."""
    written = 0

    async def count(_verb, item, _decide):
        nonlocal written
        written += len(item.entries)

    def say():
        for _ in range(5000):
            book.write("info", "line", {}, "")

    book = LogBook(count, "run", 1, 1, 1)
    threads = [threading.Thread(target=say) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            await book._write_out()
    finally:
        sys.setswitchinterval(interval)
    await book.flush()
    assert written == 15_000
