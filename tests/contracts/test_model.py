"""Both engines do in every history what a plain model of a store does; and the model would see it if they did not.

`PIECEWORK_FUZZ=2000` looks at so many histories, other ones each time, instead of the few that are always the same.
"""

from __future__ import annotations

import os
from itertools import count

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from msgspec.structs import replace

from piecework.run import admission, folds, parts, waking
from piecework.store.sqlite import SqliteStore
from piecework.testing.model import store_machine

FUZZ = int(os.environ.get("PIECEWORK_FUZZ", "0"))

pytestmark = pytest.mark.timeout(0 if FUZZ else 120)  # it is a failure that takes long: it is shrunk


def profile(examples, *, steps=40, **rest):
    """The same histories every time, unless others are asked for."""
    return settings(
        max_examples=FUZZ or examples,
        stateful_step_count=50 if FUZZ else steps,
        derandomize=not FUZZ,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        **rest,
    )


@pytest.fixture
def sqlite(tmp_path):
    """Opens an empty store."""
    numbers = count()

    async def opened():
        store = SqliteStore(tmp_path / f"{next(numbers)}.db")
        await store.open()
        return store

    return opened


@pytest.fixture
def postgres(postgres_url):
    """Opens a store that has been emptied."""
    import psycopg

    from piecework.store.postgres import PostgresStore

    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'piecework' AND tablename <> 'schema_version'"
    with psycopg.connect(postgres_url, autocommit=True) as connection:

        async def opened():
            store = PostgresStore(postgres_url)
            await store.open()
            names = [name for (name,) in connection.execute(tables)]
            # Among so few rows faster than TRUNCATE, which makes every file anew.
            connection.execute(";".join(f'DELETE FROM piecework."{name}"' for name in names))
            return store

        yield opened


def test_sqlite(sqlite):
    run_state_machine_as_test(store_machine(sqlite), settings=profile(30))


def test_postgres(postgres):
    run_state_machine_as_test(store_machine(postgres), settings=profile(15))


def _any_epoch(draft, run_id, _epoch):
    return parts.known(draft, run_id)


def _keeps_its_place(slot, _run_id):
    return replace(slot, paused=slot.paused + 1)


def _starts_beside_the_clean_up(slot):
    return max(0, min(slot.queued, slot.concurrency - slot.live))


@pytest.mark.skipif(FUZZ, reason="the model is not what is looked at")
@pytest.mark.parametrize(
    ("where", "name", "instead"),
    [
        (folds, "owned", _any_epoch),
        (folds, "check_held", lambda _run: None),
        (waking, "next_met", lambda _waits, kept: kept[:1]),
        (folds, "forget_patch", lambda _draft, run: run),
        (admission, "paused", _keeps_its_place),
        (admission, "startable", _starts_beside_the_clean_up),
    ],
)
def test_a_broken_store_is_found(sqlite, monkeypatch, where, name, instead):
    """A store that breaks a promise does not pass."""
    monkeypatch.setattr(where, name, instead)
    with pytest.raises((AssertionError, ExceptionGroup)):
        run_state_machine_as_test(store_machine(sqlite), settings=profile(150, phases=[Phase.generate]))
