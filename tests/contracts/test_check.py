"""Every contradiction that `check` knows is found by its name where it is planted, and nothing else is."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest

from piecework.store import check as checking
from piecework.store.check import FILE_RULES, LIMIT, RULES, check
from piecework.store.looking import looking_at
from piecework.store.opening import store_for
from piecework.store.records import (
    Buffered,
    Delivery,
    Digest,
    Entry,
    EventRow,
    Fanout,
    NodeRow,
    Notification,
    Piece,
    Run,
    RunValue,
    Signal,
    Slot,
    Space,
    Wait,
)

NOW = 1_767_225_600_000_000
SQL = Path(checking.__file__).parent / "sql"


class Sqlite:
    """Raw SQL on a SQLite file."""

    def __init__(self, url):
        self.connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)

    async def open(self):
        """It is open already."""

    async def execute(self, text, *values):
        return self.connection.execute(text, values)

    async def close(self):
        self.connection.close()

    @staticmethod
    def mark(_number):
        return "?"


class Postgres:
    """Raw SQL on a schema of PostgreSQL's."""

    def __init__(self, url):
        self.url = url

    async def open(self):
        import asyncpg

        self.connection = await asyncpg.connect(self.url, server_settings={"search_path": "piecework"})

    async def execute(self, text, *values):
        return await self.connection.execute(text, *values)

    async def close(self):
        await self.connection.close()

    @staticmethod
    def mark(number):
        return f"${number}"


async def insert(raw, *records):
    for row in records:
        fields = row.__struct_fields__
        marks = ", ".join(raw.mark(number) for number in range(1, len(fields) + 1))
        text = f"INSERT INTO {row.table} ({', '.join(fields)}) VALUES ({marks})"
        await raw.execute(text, *msgspec.structs.astuple(row))


async def carry_out(raw, statements):
    for statement in statements.split("; "):
        await raw.execute(statement)


def run(run_id, status, *, slot=None, place=None, kind="workflow", event=None, **rest):
    ended = status in {"completed", "failed", "aborted"}
    given = {
        "paused_at": NOW if status == "paused" else None,
        "started_at": NOW,
        "ended_at": NOW if ended else None,
        "cleaned": int(ended),
        "space": "default",
        "workflow_id": "orders" if kind == "workflow" else "tidy",
        "key_value": None,
        **rest,
    }
    fixed = {"trigger_id": "", "pipeline_id": "", "stage": None, "version": None}
    return Run(run_id=run_id, kind=kind, slot_key=slot, place=place, status=status, event_seq=event, **fixed, **given)


def slot(key, mode="serialized", *, concurrency=1, hold=1, **rest):
    on_busy = "queue_single" if mode == "exclusive" else ""
    return Slot(key, "orders", mode, on_busy, concurrency, 1000, hold, admitted=9, **rest)


def piece(piece_id, *, observed="idle", run_id=None, next_run_at=None):
    observations = dict.fromkeys(("last_run_at", "last_success_at", "last_failure_at", "last_error", "broken_at"))
    return Piece(
        "acme", piece_id, "feed", b"{}", 60_000_000, None, None, None, "enabled", None, observed, "Success", b"{}",
        run_id, next_run_at, consecutive_failures=0, created_at=NOW, updated_at=NOW, **observations,
    )  # fmt: skip


def wait(run_id, event_type="order.paid", wait_id=None, mode="any"):
    return Wait(wait_id or f"w-{run_id}", event_type, run_id, "", "", "p", b"[]", None, None, 1000, NOW, mode)


CONTENT = (
    *(EventRow(seq, f"evt-{seq}", "order.placed", None if seq == 1 else "acme", b"{}", NOW) for seq in range(1, 10)),
    NodeRow("n1", 7, "here", "1", b"[]", NOW, NOW, None),
    NodeRow("n2", 8, "there", "1", b"[]", NOW, NOW, NOW),
    Space("default", NOW),
    Space("acme", NOW + 5),
    Space("still", None),
    # One at a time, with a queue.
    slot("fifo", live=1, queued=2),
    run("fifo-live", "running", slot="fifo", place=1, owner="n1", event=1, signals=1, patched=1, resume_count=1),
    run("fifo-2", "queued", slot="fifo", place=2, event=2),
    run("fifo-3", "queued", slot="fifo", place=3, event=3),
    # Two at a time, where a pause gives the place up: one is paused, one starts, one is being cleaned, one waits.
    slot("wide", "transient", concurrency=2, hold=0, live=2, queued=1, closing=1, paused=1),
    run("wide-paused", "paused", slot="wide", place=1, event=4, waiting_for='["order.lost","order.paid"]'),
    run("wide-due", "queued", slot="wide", place=2, event=5, due_at=NOW + 1),
    run("wide-closing", "completed", slot="wide", place=3, event=6, owner="n1", cleaned=0),
    run("wide-queued", "queued", slot="wide", place=4, event=6),
    run("wide-done", "failed", slot="wide", place=0, event=6),
    # One at a time, and the newest gets the place next.
    slot("single", "exclusive", live=1, queued=1, active_run_id="single-live", pending_run_id="single-next"),
    run("single-live", "running", slot="single", place=1, owner="n1", event=7),
    run("single-next", "queued", slot="single", place=2, event=8),
    # Finished history whose slot and event went before it.
    run("old", "completed", slot="gone-slot", place=1, event=1000),
    run("job", "queued", kind="job", due_at=NOW + 2),
    run("job-live", "running", kind="job", owner="n1"),
    run("job-done", "completed", kind="job"),
    run("hn-next", "queued", kind="piece", space="acme", key_value="hn", due_at=NOW + 5),
    run("hn-last", "completed", kind="piece", space="acme", key_value="hn", outcome="success"),
    piece("hn", run_id="hn-next", next_run_at=NOW + 5),
    piece("broken", observed="broken"),
    wait("wide-paused"),
    wait("wide-paused", "order.lost"),
    # One of each type: the second has still to come.
    wait("wide-paused", "order.lost", "w-both", "all"),
    wait("wide-paused", "order.paid", "w-both", "all"),
    Buffered("wide-paused", 8, "w-both", "order.lost", b"{}"),
    wait("fifo-live"),
    Buffered("fifo-live", 9, "w-fifo-live", "order.paid", b"{}"),
    Signal("fifo-live", 1, b"{}", NOW),
    RunValue("job-done", "result", b"1"),
    RunValue("fifo-live", "patch", b"{}"),
    Entry("job-done", 1, 0, 0, NOW, "pipeline", "run:completed", "", None),
    Delivery(1, "orders", "", "", "pending", None),
    Delivery(1000, "orders", "default", "old", "started", None),
    Fanout(2, "p", "w"),
    Digest("ada", "acme", "ada@example.org", "n-2", NOW),
    Notification(1, "n-1", "ada", "alike", None, b"x", NOW),
    Notification(2, "n-2", "ada", "alike", None, b"x", NOW),
)  # fmt: skip


@pytest.fixture
async def raw(engine_url):
    """Raw SQL on a store with something of everything in it."""
    store = store_for(engine_url)
    await store.open()
    await store.close()
    raw = Sqlite(engine_url) if engine_url.startswith("sqlite:") else Postgres(engine_url)
    await raw.open()
    await insert(raw, *CONTENT)
    yield raw
    await raw.close()


@pytest.fixture
def found(engine_url, raw):
    """Checks the store and answers what was found."""

    async def found():
        async with looking_at(engine_url) as look:
            return await check(look)

    return found


async def test_a_sound_store_has_no_findings(found):
    """Whatever may stand in a store side by side is no contradiction."""
    assert await found() == []


async def test_an_open_store_can_be_asked(engine_url, raw):
    """An open store that nobody else uses answers for itself."""
    await raw.execute("UPDATE runs SET owner = NULL WHERE run_id = 'job-live'")
    store = store_for(engine_url)
    await store.open()
    try:
        assert [finding.rule for finding in await check(store)] == ["run_lost"]
    finally:
        await store.close()


# A run that was woken, could not go on, and will take up its patch again at its deadline; an event came meanwhile.
UNRESUMED = (
    "UPDATE buffers SET run_id = 'wide-paused'; UPDATE run_values SET run_id = 'wide-paused' WHERE name = 'patch'; "
    "UPDATE runs SET patched = 0 WHERE run_id = 'fifo-live'; "
    f"UPDATE runs SET patched = 1, expires_at = {NOW} WHERE run_id = 'wide-paused'"
)

PLANTED = [
    ("run_owned_and_due", "run job-live", f"UPDATE runs SET due_at = {NOW} WHERE run_id = 'job-live'"),
    ("run_cleaned_alive", "run wide-paused", "UPDATE runs SET cleaned = 1 WHERE run_id = 'wide-paused'"),
    ("run_cleaned_alive", "run job-done", "UPDATE runs SET owner = 'n1' WHERE run_id = 'job-done'"),
    ("run_end_without_moment", "run job-done", "UPDATE runs SET ended_at = NULL WHERE run_id = 'job-done'"),
    ("run_end_without_moment", "run job", f"UPDATE runs SET ended_at = {NOW} WHERE run_id = 'job'"),
    ("run_lost", "run fifo-live", "UPDATE runs SET owner = NULL WHERE run_id = 'fifo-live'"),
    ("run_never_cleaned", "run job-done", "UPDATE runs SET cleaned = 0 WHERE run_id = 'job-done'"),
    ("run_queued_owned", "run fifo-2", "UPDATE runs SET owner = 'n1' WHERE run_id = 'fifo-2'"),
    ("run_queued_nowhere", "run job", "UPDATE runs SET due_at = NULL WHERE run_id = 'job'"),
    ("run_paused_held", "run wide-paused", "UPDATE runs SET owner = 'n1' WHERE run_id = 'wide-paused'"),
    ("run_paused_held", "run wide-paused", f"UPDATE runs SET due_at = {NOW} WHERE run_id = 'wide-paused'"),
    ("run_deadline_unpaused", "run fifo-2", f"UPDATE runs SET expires_at = {NOW} WHERE run_id = 'fifo-2'"),
    ("run_in_two_states", "run fifo-live", f"UPDATE runs SET paused_at = {NOW} WHERE run_id = 'fifo-live'"),
    ("run_in_two_states", "run wide-paused", "UPDATE runs SET paused_at = NULL WHERE run_id = 'wide-paused'"),
    ("run_without_slot", "run job-live", "UPDATE runs SET slot_key = 'gone-slot' WHERE run_id = 'job-live'"),
    ("run_without_event", "run fifo-2", "DELETE FROM events WHERE seq = 2; DELETE FROM fanouts"),
    ("slot_counts", "slot fifo", "UPDATE slots SET live = 2 WHERE slot_key = 'fifo'"),
    ("slot_counts", "slot fifo", "UPDATE slots SET queued = 1 WHERE slot_key = 'fifo'"),
    ("slot_counts", "slot fifo", "UPDATE slots SET closing = 1 WHERE slot_key = 'fifo'"),
    ("slot_counts", "slot fifo", "UPDATE slots SET paused = 1 WHERE slot_key = 'fifo'"),
    ("slot_overfull", "slot wide", "UPDATE slots SET concurrency = 1 WHERE slot_key = 'wide'"),
    ("slot_overfull", "slot fifo", "UPDATE slots SET concurrency = 0 WHERE slot_key = 'fifo'"),
    ("slot_idle_queue", "slot wide", "UPDATE slots SET concurrency = 3 WHERE slot_key = 'wide'"),
    ("slot_idle_queue", "slot fifo", "UPDATE slots SET concurrency = 2 WHERE slot_key = 'fifo'"),
    ("slot_active_run", "slot single", "UPDATE slots SET active_run_id = 'nobody' WHERE slot_key = 'single'"),
    ("slot_active_run", "slot single", "UPDATE slots SET active_run_id = 'fifo-live' WHERE slot_key = 'single'"),
    ("slot_active_run", "slot single", "UPDATE slots SET active_run_id = 'single-next' WHERE slot_key = 'single'"),
    ("slot_active_run", "slot wide", "UPDATE slots SET active_run_id = 'wide-paused' WHERE slot_key = 'wide'"),
    ("slot_active_run", "slot wide", "UPDATE slots SET active_run_id = 'wide-closing' WHERE slot_key = 'wide'"),
    ("slot_pending_run", "slot single", "UPDATE slots SET pending_run_id = 'nobody' WHERE slot_key = 'single'"),
    ("slot_pending_run", "slot single", "UPDATE slots SET pending_run_id = 'fifo-2' WHERE slot_key = 'single'"),
    ("slot_pending_run", "slot single", "UPDATE slots SET pending_run_id = 'single-live' WHERE slot_key = 'single'"),
    ("slot_pending_run", "slot wide", "UPDATE slots SET pending_run_id = 'wide-due' WHERE slot_key = 'wide'"),
    ("slot_place_twice", "slot fifo", "UPDATE runs SET place = 2 WHERE run_id = 'fifo-3'"),
    ("wait_without_run", "run nobody", "UPDATE waits SET run_id = 'nobody' WHERE run_id = 'fifo-live'"),
    ("wait_without_run", "run job-done", "UPDATE waits SET run_id = 'job-done' WHERE run_id = 'fifo-live'"),
    ("buffer_without_run", "run nobody", "UPDATE buffers SET run_id = 'nobody'"),
    ("buffer_without_run", "run wide-closing", "UPDATE buffers SET run_id = 'wide-closing'"),
    ("signal_without_run", "run nobody", "UPDATE signals SET run_id = 'nobody'; UPDATE runs SET signals = 0"),
    ("signal_without_run", "run old", "UPDATE signals SET run_id = 'old'; UPDATE runs SET signals = 0"),
    ("signal_count", "run fifo-live", "DELETE FROM signals"),
    ("signal_count", "run fifo-live", "UPDATE runs SET signals = 0"),
    ("run_without_patch", "run fifo-live", "DELETE FROM run_values WHERE name = 'patch'"),
    ("value_without_run", "run nobody", "UPDATE run_values SET run_id = 'nobody' WHERE name = 'result'"),
    ("timeline_without_run", "run nobody", "UPDATE timeline SET run_id = 'nobody'"),
    ("buffered_while_paused", "run wide-paused", "UPDATE buffers SET run_id = 'wide-paused'"),
    (
        "buffered_while_paused",
        "run wide-paused",
        "UPDATE buffers SET run_id = 'wide-paused', wait_id = 'w-both' WHERE run_id = 'fifo-live'",
    ),
    ("buffered_while_paused", "run wide-paused", f"{UNRESUMED}; UPDATE runs SET expires_at = NULL"),
    ("waiting_for", "run wide-paused", "UPDATE runs SET waiting_for = '[\"order.paid\"]' WHERE run_id = 'wide-paused'"),
    ("waiting_for", "run wide-paused", "UPDATE runs SET waiting_for = NULL WHERE run_id = 'wide-paused'"),
    ("waiting_for", "run wide-paused", "UPDATE runs SET waiting_for = 'order.paid' WHERE run_id = 'wide-paused'"),
    (
        "waiting_for",
        "run wide-paused",
        "DELETE FROM buffers WHERE run_id = 'wide-paused'; DELETE FROM waits WHERE run_id = 'wide-paused'",
    ),
    ("piece_without_run", "piece acme/hn", "UPDATE pieces SET run_id = NULL WHERE piece_id = 'hn'"),
    ("piece_without_run", "piece acme/hn", "UPDATE pieces SET run_id = 'nobody' WHERE piece_id = 'hn'"),
    ("piece_without_run", "piece acme/hn", "UPDATE pieces SET run_id = 'hn-last' WHERE piece_id = 'hn'"),
    ("piece_removed", "piece acme/broken", "UPDATE pieces SET desired = 'removed' WHERE piece_id = 'broken'"),
    ("piece_broken_and_due", "piece acme/broken", f"UPDATE pieces SET next_run_at = {NOW} WHERE piece_id = 'broken'"),
    ("piece_after_nothing", "piece acme/broken", "UPDATE pieces SET after_run_id = 'no' WHERE piece_id = 'broken'"),
    ("space_asleep", "space acme", f"UPDATE spaces SET next_due = {NOW + 6} WHERE space = 'acme'"),
    ("space_asleep", "space acme", "UPDATE spaces SET next_due = NULL WHERE space = 'acme'"),
    ("space_asleep", "space acme", "DELETE FROM spaces WHERE space = 'acme'"),
    ("delivery_without_event", "event 77", "UPDATE deliveries SET event_seq = 77 WHERE outcome = 'pending'"),
    ("fanout_without_event", "event 77", "UPDATE fanouts SET event_seq = 77"),
    ("notification_without_digest", "digest ada", "DELETE FROM digests"),
    ("digest_without_notification", "digest ada", "DELETE FROM notifications"),
    ("digest_without_notification", "digest ada", "UPDATE digests SET last_id = 'n-1'"),
    ("owner_without_node", "node n1", "DELETE FROM nodes WHERE node_id = 'n1'"),
]


@pytest.mark.covers("N71")
@pytest.mark.parametrize(("rule", "subject", "statements"), PLANTED)
async def test_a_planted_contradiction_is_found(raw, found, rule, subject, statements):
    """Exactly what was planted is found, by its name."""
    await carry_out(raw, statements)
    assert [(finding.rule, finding.subject) for finding in await found()] == [(rule, subject)]


async def test_a_resume_that_failed_is_none(raw, found):
    """A paused run that will take up its patch again at a deadline may have events behind it."""
    await carry_out(raw, UNRESUMED)
    assert await found() == []


async def test_a_store_whose_nodes_have_stopped_is_none(raw, found):
    """A node that stops takes its row along; what it still had is taken over by the next one."""
    await raw.execute("DELETE FROM nodes")
    assert await found() == []


async def test_a_piece_without_a_schedule_is_none(raw, found):
    """A piece that only events wake has no update to come."""
    await raw.execute("UPDATE pieces SET run_id = NULL, next_run_at = NULL, observed = 'waiting' WHERE piece_id = 'hn'")
    assert await found() == []


async def test_a_rule_tells_so_much_and_no_more(raw, found):
    """However much is wrong, a rule answers a bounded number of findings."""
    await insert(raw, *(RunValue(f"nobody-{number}", "args", b"1") for number in range(LIMIT + 1)))
    assert len(await found()) == LIMIT


def test_every_rule_is_planted():
    """Each rule has its query, each query its rule, and each is planted above (the file's own below)."""
    written = {file.name.removeprefix("check_").split(".")[0] for file in SQL.glob("check_*.sql")}
    assert written == {*RULES, *FILE_RULES}
    assert {rule for rule, _, _ in PLANTED} == {*RULES}


@pytest.fixture
async def file(tmp_path):
    """Raw SQL on a SQLite store with something of everything in it."""
    url = f"sqlite:///{tmp_path}/state.db"
    store = store_for(url)
    await store.open()
    await store.close()
    raw = Sqlite(url)
    await insert(raw, *CONTENT)
    yield url, raw.connection
    await raw.close()


async def test_a_damaged_file(file):
    """What SQLite finds wrong in a file is told, and nothing is asked of it any further."""
    url, connection = file
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute(
        "UPDATE sqlite_schema SET sql = replace(sql, 'space TEXT,', 'space TEXT NOT NULL,') WHERE name = 'events'"
    )
    connection.execute("DELETE FROM nodes")
    connection.close()
    async with looking_at(url) as look:
        assert [(finding.rule, finding.message) for finding in await check(look)] == [
            ("integrity", "NULL value in events.space")
        ]


async def test_a_reference_to_nothing(file):
    """A foreign key that refers to nothing is told."""
    url, connection = file
    connection.execute("CREATE TABLE notes (run_id TEXT REFERENCES runs (run_id))")
    connection.execute("INSERT INTO notes VALUES ('nobody')")
    async with looking_at(url) as look:
        assert [(finding.rule, finding.subject) for finding in await check(look)] == [("foreign_keys", "table notes")]
