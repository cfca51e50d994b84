"""What the tests of verbs at once share: an arena for all of a file, and what most scenarios begin and end with."""

from __future__ import annotations

import pytest

from piecework.store.records import Run
from piecework.testing.interleaving import Arena
from piecework.testing.rows import event, route


@pytest.fixture(scope="module")
def anyio_backend():
    """One loop for all tests here: the connections are made once."""
    return "asyncio"


@pytest.fixture(scope="module")
async def arena(postgres_databases):
    url = postgres_databases.fresh()
    async with Arena(url) as arena:
        yield arena
    postgres_databases.drop(url)


@pytest.fixture(params=[40, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def samples(request):
    """How many of the schedules of three verbs are tried: there are too many to try them all."""
    return request.param


async def endings(arena, setup, check=None, *, samples=None):
    """The endings of all schedules that can make a difference, or of some taken at random."""
    report = await arena.explore(setup, check, samples=samples)
    assert report.complete or report.schedules == samples, f"{report.schedules} schedules are not all"
    return set(report.endings)


def start(later, to, **options):
    """An event with one trigger."""
    return later.accept(event(routes=[route(to, **options)]))


async def ended(verbs, to=None, **options):
    """A run that has ended and is to be cleaned."""
    run = await verbs.running(to)
    await verbs.settle(run, **options)
    return run


async def runs(verbs):
    """All runs, the newest first."""
    asked = dict.fromkeys(("status", "workflow", "space", "kind", "created_at", "run_id"))
    return await verbs.store.read("list_runs", {**asked, "limit": 100}, Run)


async def all_claimed(end):
    """What is due is found by the next claim, whatever the spaces say."""
    due = [run for run in await runs(end.verbs) if run.due_at is not None and run.owner is None]
    assert len(await end.verbs.claim("node-9")) == len(due)
