"""What a store promises about tenants: nobody's backlog is in another's way, and nothing that is due is overlooked."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from piecework.clock import SECOND
from piecework.run.folds import decide_claim, decide_enqueue
from piecework.store.items import Claim, Defer
from piecework.store.records import Space
from piecework.store.verbs.claim import claim
from piecework.store.verbs.runs import enqueue
from piecework.testing.rows import KNOWN, job, piece, piece_end, slot, transient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from piecework.store.items import Claimed
    from piecework.testing.verbs import Verbs


class SpacePromises:
    """`claim` among several spaces, and the moment that each of them is due next."""

    # -- fairness --------------------------------------------------------------------------------------------------

    async def test_a_backlog_delays_nobody_else(self, verbs: Verbs) -> None:
        """A thousand due runs of one space do not keep another's single one from the next claim."""
        await _enqueue(verbs, "big", 1000)
        verbs.now += SECOND
        await _enqueue(verbs, "small", 1)
        assert _spaces(await verbs.claim(limit=8)) == {"big": 7, "small": 1}

    async def test_spaces_get_equal_shares(self, verbs: Verbs) -> None:
        """Where all have enough to do each gets the same."""
        for space in ("a", "b", "c", "d"):
            await _enqueue(verbs, space, 30)
        assert _spaces(await verbs.claim(limit=40)) == {"a": 10, "b": 10, "c": 10, "d": 10}

    async def test_shares_that_are_not_used_go_to_others(self, verbs: Verbs) -> None:
        """No place stays empty while somebody has work for it."""
        await _enqueue(verbs, "a", 100)
        await _enqueue(verbs, "b", 3)
        await _enqueue(verbs, "c", 40)
        assert _spaces(await verbs.claim(limit=50)) == {"a": 24, "b": 3, "c": 23}
        assert len(await verbs.claim(limit=1000)) == 93

    async def test_weights_are_shares(self, verbs: Verbs) -> None:
        """A space of weight 3 gets three times what one of weight 1 gets."""
        await verbs.insert(Space("heavy", None, 3), Space("light", None, 1))
        for space in ("heavy", "light"):
            await _enqueue(verbs, space, 50)
        assert _spaces(await verbs.claim(limit=40)) == {"heavy": 30, "light": 10}

    async def test_a_weight_outlives_the_work(self, verbs: Verbs) -> None:
        """What becomes due, and what is claimed, changes a space's moment, not its weight."""
        await verbs.insert(Space("heavy", None, 3))
        await _enqueue(verbs, "heavy", 2)
        await verbs.claim()
        row = await verbs.space("heavy")
        assert row == Space("heavy", None, 3)

    async def test_fewer_places_than_spaces(self, verbs: Verbs) -> None:
        """A claim of one place serves the spaces in turn, behind the one that it served last."""
        for space in ("a", "b", "c"):
            await _enqueue(verbs, space, 2)
        served: list[str] = []
        for _ in range(6):
            (entry,) = await verbs.claim(limit=1, after=served[-1] if served else "")
            served.append(entry.run.space)
        assert served == ["a", "b", "c", "a", "b", "c"]

    async def test_a_space_runs_its_own_work_in_order(self, verbs: Verbs) -> None:
        """Within a space what has been due longest comes first, however many shares it is handed out in."""
        ids: dict[str, list[str]] = {"a": [], "b": []}
        for number in range(10):
            for space, made in ids.items():
                verbs.now += 1
                run_id = f"{space}-{9 - number}"
                made.append(run_id)
                await verbs.enqueue(job(run_id, space=space))
        taken: list[Claimed] = []
        while batch := await verbs.claim(limit=3):
            taken += batch
        assert {space: [e.run.run_id for e in taken if e.run.space == space] for space in ids} == ids

    async def test_two_claimers_both_get_work(self, verbs: Verbs) -> None:
        """Nodes that claim at the same moment share what is due; none goes away empty-handed, none of it twice."""
        await _enqueue(verbs, "a", 40)
        batch = [Claim(owner=f"node-{n}", limit=10, known=KNOWN) for n in (1, 2)]
        answers = await verbs.together(claim, batch, decide_claim)
        more = await asyncio.gather(*(verbs.claim(f"node-{n}", limit=10) for n in (3, 4)))
        taken = [entry.run.run_id for answer in (*answers, *more) for entry in answer]
        assert [len(answer) for answer in answers] == [10, 10]
        left = await verbs.claim(limit=100)
        assert len({*taken, *(entry.run.run_id for entry in left)}) == len(taken) + len(left) == 40

    async def test_more_spaces_than_are_looked_at_at_once(self, verbs: Verbs) -> None:
        """With more due spaces than one look takes in, all come up in turn: nobody is passed over for ever."""
        names = [f"space-{number:03}" for number in range(300)]
        for _ in range(2):
            await verbs.together(enqueue, [job(space=name) for name in names], decide_enqueue)
        served: list[str] = []
        for _ in range(6):
            batch = await verbs.claim(limit=50, after=max(served[-50:], default=""))
            served += sorted(entry.run.space for entry in batch)
        assert served == names

    async def test_a_turn_begins_anew(self, verbs: Verbs) -> None:
        """Behind the last space come the first ones again."""
        names = [f"space-{number:03}" for number in range(300)]
        await verbs.together(enqueue, [job(space=name) for name in names], decide_enqueue)
        taken = await verbs.claim(limit=20, after="space-290")
        assert sorted(entry.run.space for entry in taken) == names[:11] + names[291:]

    async def test_what_nobody_here_knows_is_in_nobodys_way(self, verbs: Verbs) -> None:
        """Due work that this node has no code for keeps no place from work that it has."""
        await verbs.together(enqueue, [job(space="a") for _ in range(30)], decide_enqueue)
        verbs.now += 1
        await verbs.start(slot())
        taken = await verbs.claim(limit=5, known=("workflow:orders",))
        assert [entry.run.kind for entry in taken] == ["workflow"]
        assert len(await verbs.claim(known=("job:tidy",))) == 30

    # -- when --------------------------------------------------------------------------------------------------------

    async def test_a_space_is_due_when_its_first_run_is(self, verbs: Verbs) -> None:
        """What becomes due earlier lowers a space's moment; what becomes due later does not raise it."""
        await verbs.enqueue(job(due_at=verbs.now + 50))
        assert await _due(verbs) == 50
        await verbs.enqueue(job(due_at=verbs.now + 20))
        await verbs.enqueue(job(due_at=verbs.now + 80))
        assert await _due(verbs) == 20

    async def test_a_claim_raises_the_moment(self, verbs: Verbs) -> None:
        """A claim that found all there was says when there will be more, or never."""
        for delay in (0, 0, 70):
            await verbs.enqueue(job(due_at=verbs.now + delay))
        assert len(await verbs.claim()) == 2
        assert await _due(verbs) == 70
        verbs.now += 70
        assert len(await verbs.claim()) == 1
        assert await _due(verbs) is None

    async def test_a_claim_that_leaves_some_raises_nothing(self, verbs: Verbs) -> None:
        """Where due work is left a space stays due."""
        await _enqueue(verbs, "default", 3)
        await verbs.claim(limit=2)
        assert await _due(verbs) == 0
        assert len(await verbs.claim(limit=2)) == 1

    async def test_no_wake_up_is_lost(self, verbs: Verbs) -> None:
        """What becomes due after a claim had said never is due, whichever way it came."""
        run = await verbs.paused(transient(concurrency=1))
        assert await _due(verbs) is None
        await verbs.resume(run.run_id)
        assert await _due(verbs) == 0
        (claimed,) = await verbs.claim()
        waiting = await verbs.start(transient(concurrency=1))
        await verbs.claim()
        assert (await _due(verbs), waiting.outcome) == (None, "queued")
        await verbs.end(claimed.run)
        assert await _due(verbs) == 0
        (claimed,) = await verbs.claim()
        await verbs.end_stage(claimed.run, Defer(due_at=verbs.now + 30))
        assert await _due(verbs) == 30
        verbs.now += 30
        (claimed,) = await verbs.claim()
        await verbs.release(claimed.run)
        assert await _due(verbs) == 0

    async def test_claims_and_arrivals_at_once(self, verbs: Verbs) -> None:
        """However claims and arrivals race, everything that came is claimed in the end."""
        claims = [asyncio.create_task(verbs.claim(f"node-{n}")) for n in range(10)]
        arrivals = [asyncio.create_task(verbs.enqueue(job(space=f"s{n % 4}"))) for n in range(20)]
        claims += [asyncio.create_task(verbs.claim(f"node-{n}")) for n in range(10)]
        await asyncio.gather(*arrivals)
        taken = [entry.run.run_id for answer in await asyncio.gather(*claims) for entry in answer]
        taken += [entry.run.run_id for entry in await verbs.claim()]
        assert len(taken) == len(set(taken)) == 20

    async def test_spaces_are_apart(self, verbs: Verbs) -> None:
        """One space's moment says nothing about another's."""
        await verbs.enqueue(job(space="a", due_at=verbs.now + 10))
        await verbs.enqueue(job(space="b", due_at=verbs.now + 20))
        verbs.now += 10
        assert _spaces(await verbs.claim()) == {"a": 1}
        assert (await verbs.space("a"), await verbs.space("b")) == (
            Space("a", None),
            Space("b", verbs.now + 10),
        )

    # -- places of pieces --------------------------------------------------------------------------------------------

    async def test_a_space_gets_so_many_updates_at_a_time(self, verbs: Verbs) -> None:
        """More updates than a space has places for are left for later; jobs and runs need no such place."""
        await _pieces(verbs, 9)
        await _enqueue(verbs, "acme", 3)
        taken = Counter(entry.run.kind for entry in await verbs.claim(places=4))
        assert taken == {"piece": 4, "job": 3}

    async def test_places_that_are_taken(self, verbs: Verbs) -> None:
        """What a node has of a space already counts; other spaces have places of their own."""
        await _pieces(verbs, 6)
        await _pieces(verbs, 6, space="other")
        taken = await verbs.claim(places=4, taken={"acme": 3})
        assert _spaces(taken) == {"acme": 1, "other": 4}
        assert await verbs.claim(places=4, taken={"acme": 4, "other": 4}) == []
        assert _spaces(await verbs.claim(places=4, taken={"other": 4})) == {"acme": 4}

    async def test_full_places_are_in_nobodys_way(self, verbs: Verbs) -> None:
        """A space whose places are taken still gets its jobs, also behind a backlog of updates."""
        await _pieces(verbs, 12)
        verbs.now += 1
        await _enqueue(verbs, "acme", 1)
        taken = await verbs.claim(limit=5, places=2)
        assert Counter(entry.run.kind for entry in taken) == {"piece": 2, "job": 1}

    @pytest.mark.parametrize("limit", [1, 3, 100])
    async def test_updates_that_were_left_come_later(self, verbs: Verbs, limit: int) -> None:
        """Every update comes up when a place is free again."""
        await _pieces(verbs, 7)
        begun: list[str | None] = []
        while taken := await verbs.claim(limit=limit, places=2):
            for entry in taken:
                begun.append(entry.run.key_value)
                await verbs.finish_piece(piece_end(entry.run))
        assert sorted(map(str, begun)) == [f"piece-{number}" for number in range(7)]


async def _enqueue(verbs: Verbs, space: str, number: int) -> None:
    await verbs.together(enqueue, [job(space=space) for _ in range(number)], decide_enqueue)


async def _pieces(verbs: Verbs, number: int, *, space: str = "acme") -> None:
    for place in range(number):
        await verbs.register_piece(piece(f"piece-{place}", space=space))


def _spaces(taken: Sequence[Claimed]) -> dict[str, int]:
    return dict(Counter(entry.run.space for entry in taken))


async def _due(verbs: Verbs) -> int | None:
    """When the default space is due, from now on; 0 where it has been due for a while."""
    row = await verbs.space()
    return None if row is None or row.next_due is None else max(0, row.next_due - verbs.now)
