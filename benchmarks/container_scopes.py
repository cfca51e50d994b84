"""A scope of five services, opened, asked and closed: ours beside wireup, dishka, svcs and that-depends.

(a) no finalizers; (b) two asynchronous finalizers that return at once; (c) the same two, each waiting for one turn of
the event loop; (d) one service that is there already. Then the price of reactivity, ours beside ours: a scope where one
of the five selects a value of a state.

All take turns in one process (A B C … C B A …), each for a few milliseconds, beginning with no garbage and with the
collector off; (a) and (b) with the collector on as well, for it works for whoever leaves it something. What counts are
ratios: of the time that ours took to the time that a peer took, in the same round. A bar is judged by the median of all
rounds, against the peer with the lowest median, and met when the worse end of its interval meets it. Time is what the
thread computed: nobody here waits for anything, and so a busy machine disturbs less.
`python benchmarks/container_scopes.py [--rounds 15] [--milliseconds 20] [--json FILE]`
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from container_peers import KEYS, OURS, Contender, Graph, Mailer, contenders, ours, recipes

from piecework.container.container import Container
from piecework.container.registry import Recipe, Registry
from piecework.container.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from container_peers import Config

PEERS = ("wireup", "dishka", "svcs", "that-depends")
TURNS = 10
LATER = 3  # turns of the event loop in which callbacks, and what these leave, come to their end
PLAIN_BAR = 1.2
FINALIZERS_BAR = 2.0 if sys.version_info >= (3, 12) else 3.0  # a task can begin eagerly from 3.12 on
CACHED_BAR = 1.5
NEIGHBOUR_BAR = 1.1
SENDER = {"sender": {"name": "Ada", "address": "ada@example.org"}, "done": 0}


@dataclass(slots=True)
class Times:
    """What one contender took.

    Attributes:
        seconds: For each of what it did, one figure a round.
        left: How many objects each left that only the garbage collector frees.
    """

    seconds: list[float] = field(default_factory=list)
    left: float = 0.0

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    def ratios(self, other: Times) -> list[float]:
        """How many times the other's time it took, round by round."""
        return [mine / its for mine, its in zip(self.seconds, other.seconds, strict=True)]


async def seconds_of_scopes(contender: Contender, times: int) -> float:
    """How long that many scopes take, in seconds of computing; what they left to the event loop is theirs as well."""
    begun = time.thread_time()
    await contender.scopes(times)
    for _ in range(LATER):
        await asyncio.sleep(0)
    return time.thread_time() - begun


async def seconds_of_gets(contender: Contender, times: int) -> float:
    """How long it takes to be given a service that is there already, that often, in one scope; of computing, too."""
    async with contender.enter() as scope:
        get, key = contender.ask(scope), contender.keys[-1]
        await get(key)
        begun = time.thread_time()
        for _ in range(times):
            await get(key)
        return time.thread_time() - begun


async def race(
    racers: Sequence[Contender],
    measure: Callable[[Contender, int], Awaitable[float]],
    *,
    rounds: int,
    seconds: float,
    collector: bool = False,
) -> dict[str, Times]:
    """Lets contenders take turns, and tells the times of each by its name.

    Args:
        racers: Who takes part.
        measure: How long something takes one of them, done so often.
        rounds: How many figures there will be of each.
        seconds: How long each of them is at work in a round.
        collector: Whether the garbage collector runs meanwhile; all begin without garbage.
    """
    share = {one.name: await _fitting(one, measure, seconds / TURNS) for one in racers}
    times = {one.name: Times() for one in racers}
    gc.collect()
    gc.freeze()
    if not collector:
        gc.disable()
    try:
        for _ in range(rounds):
            spent = dict.fromkeys(share, 0.0)
            for turn in range(TURNS):
                for one in racers if turn % 2 == 0 else reversed(racers):
                    spent[one.name] += await measure(one, share[one.name])
                    times[one.name].left += gc.collect() / (share[one.name] * TURNS * rounds)
            for name, seconds_spent in spent.items():
                times[name].seconds.append(seconds_spent / (share[name] * TURNS))
    finally:
        gc.enable()
        gc.unfreeze()
    return times


async def _fitting(contender: Contender, measure: Callable[[Contender, int], Awaitable[float]], seconds: float) -> int:
    """How often it does it in so many seconds; it is warm afterwards."""
    times = 16
    while (took := await measure(contender, times)) < seconds:
        times *= 2
    return max(1, round(times * seconds / took))


async def check(contender: Contender, graph: Graph) -> None:
    """Sees that a contender does what is measured: five services, wired, one each in a scope, finalized."""
    seen = []
    for _ in range(2):
        async with contender.enter() as scope:
            get = contender.ask(scope)
            session, repo, mailer, audit, handler = made = [await get(key) for key in contender.keys]
            assert [type(one) for one in made] == list(KEYS), made
            assert repo.session is session
            assert audit.repo is repo is handler.repo
            assert handler.mailer is mailer
            assert session.open
            assert mailer.open
            assert await get(contender.keys[0]) is session
        assert session.open is mailer.open is not graph.finalizers, contender.name
        seen.append(session)
    assert seen[0] is not seen[1]
    assert seen[0].config is seen[1].config


async def builds_once(contender: Contender) -> bool:
    """Tells whether two tasks that ask at once get the same service, in a graph whose factories wait."""
    async with contender.enter() as scope:
        get, key = contender.ask(scope), contender.keys[0]
        one, other = await asyncio.gather(get(key), get(key))
        return one is other


class Report:
    """What is printed, and written to a file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._results: list[dict[str, Any]] = []
        self._about = {
            "machine": f"{platform.machine()} {platform.system()} {platform.release()}, {os.cpu_count()} cores",
            "python": f"{platform.python_implementation()} {platform.python_version()}",
            **{name: version(name) for name in PEERS},
        }
        print((__doc__ or "").splitlines()[0])
        for name, what in self._about.items():
            print(f"  {name:13} {what}")

    def race(self, title: str, times: dict[str, Times], beside: set[str], bar: float | None) -> None:
        """Tells how ours did beside its peers.

        Args:
            title: What was done.
            times: Of each contender.
            beside: Who is told, but not among those whom the bar is about.
            bar: How many times the fastest peer's time ours may take; None asks nothing.
        """
        mine = times[OURS]
        peers = {name: its for name, its in times.items() if name != OURS}
        fastest = fastest_of(times, beside)
        print(f"\n{title}\n  {'':18} {'µs':>9} {'ours is':>9}   {'95 % interval':17} {'spread':17} left to collect")
        print(f"  {OURS:18} {mine.median * 1e6:9.2f} {'':9}   {'':17} {'':17} {mine.left:.1f}")
        for name, its in peers.items():
            ratios = mine.ratios(its)
            middle, known, spread = statistics.median(ratios), _span(*interval(ratios)), _span(min(ratios), max(ratios))
            print(f"  {name:18} {its.median * 1e6:9.2f} {middle:8.2f}x   {known:17} {spread:17} {its.left:.1f}")
        self._add(title, mine.ratios(peers[fastest]), bar, times, fastest=fastest)

    def against(self, title: str, one: Times, other: Times, bar: float | None = None) -> None:
        """Tells how many times the time of one thing another takes."""
        print(f"\n{title}")
        self._add(title, one.ratios(other), bar, {"one": one, "other": other})

    def _add(self, title: str, ratios: list[float], bar: float | None, times: dict[str, Times], **more: str) -> None:
        low, high = interval(ratios)
        result: dict[str, Any] = {
            "name": title,
            **more,
            "median": round(statistics.median(ratios), 3),
            "interval": [round(low, 3), round(high, 3)],
            "spread": [round(min(ratios), 3), round(max(ratios), 3)],
            "rounds": len(ratios),
        }
        if bar is not None:
            result |= {"bar": f"at most {bar:g}", "met": high <= bar}
        for key, value in result.items():
            if key != "name":
                print(f"  {key:10} {value}")
        mine = times.get(OURS)
        result["contenders"] = {
            name: {
                "microseconds": round(its.median * 1e6, 3),
                "left_to_collect": round(its.left, 2),
                **({"ours_is": [round(figure, 3) for figure in _known(mine, its)]} if mine else {}),
            }
            for name, its in times.items()
        }
        self._results.append(result)

    def note(self, name: str, what: object) -> None:
        """Tells something that is no ratio."""
        print(f"\n{name}\n  {what}")
        self._results.append({"name": name, "what": what})

    def write(self) -> None:
        """Writes the file, if one is wanted."""
        if self._options.json is not None:
            report = {"benchmark": (__doc__ or "").splitlines()[0], **self._about, "results": self._results}
            self._options.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median lies with 95 % certainty, by order alone; of less than six values it is the whole spread."""
    ordered = sorted(values)
    beyond, certain = 0, 0.0
    while (certain := certain + math.comb(len(ordered), beyond) / 2 ** len(ordered)) <= 0.025:
        beyond += 1
    outermost = max(beyond - 1, 0)
    return ordered[outermost], ordered[-1 - outermost]


def fastest_of(times: dict[str, Times], beside: set[str]) -> str:
    """The peer with the lowest median, of those that the bar is about."""
    return min(set(times) - beside - {OURS}, key=lambda name: times[name].median)


def _known(mine: Times, its: Times) -> tuple[float, float, float]:
    ratios = mine.ratios(its)
    return (statistics.median(ratios), *interval(ratios))


def _span(low: float, high: float) -> str:
    return f"{low:.2f} to {high:.2f}"


async def beside_peers(report: Report, options: argparse.Namespace) -> None:
    """(a) to (d)."""
    rounds, seconds = options.rounds, options.milliseconds / 1e3
    slow = contenders(Graph(finalizers=True, slow=True))
    once = [one.name for one in slow if not one.beside and await builds_once(one)]
    report.note("two tasks that ask a scope at once share one build", "; ".join(once))
    for title, graph, bar in (
        ("(a) five services, no finalizers", Graph(), PLAIN_BAR),
        ("(b) five services, two finalizers that return at once", Graph(finalizers=True), FINALIZERS_BAR),
        ("(c) five services, two finalizers that wait for one turn", Graph(finalizers=True, turn=True), None),
    ):
        everyone = contenders(graph)
        for one in everyone:
            await check(one, graph)
        times = await race(everyone, seconds_of_scopes, rounds=rounds, seconds=seconds)
        beside = {one.name for one in everyone if one.beside}
        report.race(title, times, beside, bar)
        if bar is not None:
            peers = [one for one in everyone if not one.beside]
            times = await race(peers, seconds_of_scopes, rounds=rounds, seconds=seconds, collector=True)
            fastest = fastest_of(times, set())
            report.against(f"{title}; the collector on, by {fastest}", times[OURS], times[fastest], bar)
    everyone = [one for one in contenders(Graph()) if not one.beside]
    times = await race(everyone, seconds_of_gets, rounds=rounds, seconds=seconds)
    report.race("(d) one service that is there already", times, set(), CACHED_BAR)


def mailer_of_context(ctx: Any, config: Config) -> Mailer:
    """Makes a mailer like the class does, with a context that it does not use."""
    del ctx
    return Mailer(config)


def selecting_mailer(ctx: Any, config: Config) -> Mailer:
    """Makes a mailer that follows one value of the state."""
    mailer = Mailer(config)
    mailer.open = bool(ctx.select(lambda state: state["sender"]["address"]))
    return mailer


def with_state(name: str, mailer: Callable[..., Mailer]) -> Contender:
    """Ours, each scope with a state of its own."""
    app = Container("app", registry=recipes(Graph(), mailer), level=Scope.APP)

    def enter() -> Container:
        return Container("run", level=Scope.RUN, parents=(app,), state=Container.State(SENDER))

    async def scopes(times: int) -> None:
        for _ in range(times):
            async with Container("run", level=Scope.RUN, parents=(app,), state=Container.State(SENDER)) as scope:
                for key in KEYS:
                    await scope.require(key)

    return Contender(name, scopes, enter, lambda scope: scope.require)


async def reactivity(report: Report, options: argparse.Namespace) -> None:
    """What selecting costs who selects, and who does not."""
    app = Container("app", registry=recipes(Graph()), level=Scope.APP)
    racers = [
        ours(Graph(), "plain"),
        ours(Graph(), "beside", app),
        with_state("state", Mailer),
        with_state("context", mailer_of_context),
        with_state("selects", selecting_mailer),
    ]
    for one in racers:
        await check(one, Graph())
    state = Container.State(SENDER)
    own = Registry([Recipe("mailer", selecting_mailer, Scope.RUN)])
    async with Container("neighbour", level=Scope.RUN, parents=(app,), registry=own, state=state) as neighbour:
        for key in KEYS:
            await neighbour.require(key)
        unsubscribe = neighbour.watch(Mailer).subscribe(lambda _: None)
        await state.set({"sender": {"address": None}})
        await neighbour.ready()
        assert not (await neighbour.require(Mailer)).open
        rounds, seconds = options.rounds, options.milliseconds / 1e3
        times = await race(racers, seconds_of_scopes, rounds=rounds, seconds=seconds)
        unsubscribe()
    for name, other, title in (
        ("state", "plain", "a scope with a state that nobody selects from, by one without"),
        ("context", "state", "... where one of five has a factory that takes the context, by one where none does"),
        ("selects", "context", "... where that factory selects a value, by one where it does not"),
        ("selects", "plain", "all of these together"),
    ):
        report.against(title, times[name], times[other])
    title = "a scope beside a living one whose services follow its state, by one that is alone"
    report.against(title, times["beside"], times["plain"], NEIGHBOUR_BAR)


async def main() -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="figures of each contender")
    parser.add_argument("--milliseconds", type=float, default=20, help="how long each is at work in a round")
    parser.add_argument("--json", type=Path, help="a file for the report")
    options = parser.parse_args()
    report = Report(options)
    await beside_peers(report, options)
    await reactivity(report, options)
    report.write()


if __name__ == "__main__":
    asyncio.run(main())
