"""What a store promises about lists and about finding: page by page, each once, however much there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from piecework.run.folds import decide_enqueue
from piecework.run.lifecycle import Status
from piecework.store.items import Park
from piecework.store.records import Run
from piecework.store.verbs.runs import FIELDS_LIMIT, enqueue
from piecework.testing.rows import job, slot, waits

if TYPE_CHECKING:
    from piecework.testing.verbs import Verbs

_MANY = 10_000


class ListPromises:
    """`list_runs`, `list_live_runs`, and waits on more fields than are looked up by value."""

    async def test_ten_thousand_runs_by_cursor(self, verbs: Verbs) -> None:
        """Ten thousand runs, many of one moment, are listed the newest first, each once."""
        ids: list[str] = []
        for part in range(10):
            batch = [job(f"job-{part * 1000 + number:05}") for number in range(1000)]
            ids += [item.run.run_id for item in batch]
            await verbs.together(enqueue, batch, decide_enqueue)
            verbs.now += part % 3
        for name in ("list_runs", "list_live_runs"):
            assert await _listed(verbs, name, limit=997) == ids[::-1]
        assert len(ids) == _MANY

    async def test_runs_that_come_and_go_between_pages(self, verbs: Verbs) -> None:
        """What comes between two pages is on none of the following; what was there is on one."""
        for number in range(20):
            await verbs.enqueue(job(f"old-{number:02}"))
            verbs.now += number % 2
        seen: list[str] = []
        last: Run | None = None
        while page := await _page(verbs, "list_runs", last, limit=3):
            seen += [run.run_id for run in page]
            last = page[-1]
            verbs.now += 1
            await verbs.enqueue(job())
        assert seen == [f"old-{number:02}" for number in reversed(range(20))]

    async def test_live_runs_are_those_that_have_not_ended(self, verbs: Verbs) -> None:
        """A run leaves the list of living ones when it ends, not when it pauses or is given back."""
        paused = await verbs.paused()
        ended = await verbs.running()
        await verbs.settle(ended)
        released = await verbs.running()
        await verbs.release(released)
        waiting = await verbs.start(slot())
        listed = await _listed(verbs, "list_live_runs", limit=10)
        assert set(listed) == {paused.run_id, released.run_id, waiting.run_id}
        assert set(await _listed(verbs, "list_runs", limit=10)) == {*listed, ended.run_id}

    @pytest.mark.parametrize("name", ["list_runs", "list_live_runs"])
    async def test_lists_of_some(self, verbs: Verbs, name: str) -> None:
        """Each filter leaves those that it names, also together with others and across pages."""
        for number in range(6):
            await verbs.enqueue(job(f"job-{number}", space="acme" if number % 2 else "other"))
        paused = await verbs.paused()
        acme = ["job-5", "job-3", "job-1"]
        assert await _listed(verbs, name, limit=2, space="acme") == acme
        assert await _listed(verbs, name, limit=2, kind="job", space="acme") == acme
        assert await _listed(verbs, name, limit=2, workflow="orders") == [paused.run_id]
        assert await _listed(verbs, name, limit=2, status=Status.PAUSED) == [paused.run_id]
        assert await _listed(verbs, name, limit=2, status=Status.PAUSED, space="acme") == []

    async def test_fields_beyond_the_limit_of_a_type(self, verbs: Verbs) -> None:
        """Runs that pause on more fields of one type than are looked up by value are all woken, each by its own."""
        number = FIELDS_LIMIT + 15
        by_field: dict[str, str] = {}
        for place in range(number):
            run = await verbs.paused(None, "order.paid", conditions=[{"field": f"field{place:03}", "value": 1}])
            by_field[f"field{place:03}"] = run.run_id
        fields = await verbs.store.read("wait_fields", {"type": "order.paid"})
        assert len(fields) == FIELDS_LIMIT + 1, "those that are looked up by value, and all the others together"
        for name, run_id in by_field.items():
            outcome = await verbs.publish_to("order.paid", **{name: 1})
            assert [(result.run_id, result.outcome) for result in outcome] == [(run_id, "resumed")]

    async def test_fields_beyond_the_limit_and_another_value(self, verbs: Verbs) -> None:
        """A wait that is not looked up by value is met by its value alone all the same."""
        run = await verbs.running()
        names = [f"field{place:03}" for place in range(FIELDS_LIMIT + 1)]
        new = tuple(wait for name in names for wait in waits(run.run_id, conditions=[{"field": name, "value": 1}]))
        await verbs.register(run, new)
        assert await verbs.publish("order.paid", **{names[-1]: 2}) == []
        assert await verbs.publish("order.paid", **{names[-1]: 1}) == ["buffered"]

    async def test_a_field_that_is_free_again(self, verbs: Verbs) -> None:
        """When the waits of other fields are gone, waits from before and from then on are found alike."""
        crowd = [await verbs.paused(None, conditions=[{"field": f"f{n:03}", "value": 1}]) for n in range(FIELDS_LIMIT)]
        before = await verbs.paused(None, id=7)
        for run in crowd:
            await verbs.abort(run.run_id)
        after = await verbs.paused(None, id=7)
        told = await verbs.publish_to("order.paid", id=7)
        assert {result.run_id for result in told} == {before.run_id, after.run_id}

    async def test_each_type_has_fields_of_its_own(self, verbs: Verbs) -> None:
        """One registration for two types is found under both, however crowded one of them is."""
        run = await verbs.running()
        crowd = [waits(run.run_id, "order.paid", conditions=[{"field": f"f{n:03}", "value": 1}]) for n in range(60)]
        await verbs.register(run, tuple(wait for new in crowd for wait in new))
        await verbs.end_stage(run, Park(stage="b", waits=waits(run.run_id, "order.paid", "order.lost", id=7)))
        assert await verbs.publish("order.lost", id=7) == ["resumed"]
        assert await verbs.publish("order.paid", id=7) == ["buffered"]


async def _listed(verbs: Verbs, name: str, *, limit: int, **filters: object) -> list[str]:
    """All ids of a list, page by page."""
    seen: list[str] = []
    last: Run | None = None
    while page := await _page(verbs, name, last, limit=limit, **filters):
        seen += [run.run_id for run in page]
        last = page[-1]
    return seen


async def _page(verbs: Verbs, name: str, last: Run | None, *, limit: int, **filters: object) -> list[Run]:
    params = {
        "status": None,
        "workflow": None,
        "space": None,
        "kind": None,
        **filters,
        "created_at": None if last is None else last.created_at,
        "run_id": None if last is None else last.run_id,
        "limit": limit,
    }
    rows: list[Run] = await verbs.store.read(name, params, Run)
    return rows
