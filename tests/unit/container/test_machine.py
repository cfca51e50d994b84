"""Whatever is done to a tree of containers in whatever order: nothing is lost, closed twice, stale or built twice.

`PIECEWORK_FUZZ=2000` looks at so many histories, other ones each time, instead of the few that are always the same.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from container_draws import CHANGES, a_layout, an_action
from container_model import KEYS, InjectedError, Place, Spec, Thing, Watching, World, explained
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from piecework.container.registry import Recipe
from piecework.container.scope import Scope
from piecework.container.state import merge
from piecework.errors import ClosedError, CycleError, DuplicateKeyError, InvalidScopeError, NotFoundError

FUZZ = int(os.environ.get("PIECEWORK_FUZZ", "0"))

pytestmark = pytest.mark.timeout(0 if FUZZ else 120)  # it is a failure that takes long: it is shrunk

numbers = st.integers(0, 2**32 - 1)
STATUSES = {"idle", "building", "ready", "stale", "error", "disposed"}
POSSIBLE = {
    "stream": lambda machine: machine.streaming(),
    "open_gates": lambda machine: machine.world.gates,
    "cancel": lambda machine: any(call.what == "ask" for call in machine.calls),
    "pass_time": lambda machine: machine.world.clock.sleeping,
    "unsubscribe": lambda machine: machine.watchings,
    "restore": lambda machine: any(place.overrides for place in machine.world.places),
    "open_another": lambda machine: len(machine.world.places) < 7,
}


@dataclass(eq=False)
class Call:
    """Something that was asked of a container, and is under way."""

    what: str
    task: asyncio.Task[Any]
    where: Place
    key: str | None = None
    built: tuple | None = None
    suspects: set[type[Exception]] = field(default_factory=set)
    since: int = 0
    bad: int = 0
    cancelled: bool = False

    def __repr__(self) -> str:
        return f"{self.what} {self.key} at {self.where}"


class ContainerMachine(RuleBasedStateMachine):
    """The rules; each ends when everything waits for a gate, for the clock, or for nothing."""

    def __init__(self):
        super().__init__()
        self.runner = asyncio.Runner()
        self.world = None
        self.calls = []
        self.watchings = []
        self.complaints = []
        self.unraisable, sys.unraisablehook = sys.unraisablehook, self.complain

    def complain(self, unraisable):
        self.complaints.append(f"{unraisable.exc_value!r} in {unraisable.object!r}")

    # -- the ways of the machine -------------------------------------------------------------------------------------

    def do(self, action):
        """Runs a function on the loop, until nothing moves any more."""

        async def whole():
            result = action()
            if asyncio.iscoroutine(result):
                result = await result
            await self.settle()
            return result

        result = self.runner.run(whole())
        self.world.catch_up()
        self.judge()
        self.world.linger()
        return result

    async def settle(self):
        loop = asyncio.get_running_loop()
        for _ in range(10_000):
            await asyncio.sleep(0)
            if loop._ready:
                continue
            if not self.world.hanging:
                return
            await asyncio.sleep(0.002)
        raise AssertionError("it never comes to rest")

    def begin(self, what, where, make, key=None, params=None):
        """Has a coroutine run by the side; what it may fail with is kept."""
        call = Call(what, asyncio.ensure_future(make()), where, key, since=self.world.since)
        call.bad = self.world.badly_closed
        call.built = None if key is None else self.world.asked_for(where, key)
        self.calls.append(call)
        self.suspect(call, params)
        return call

    def suspect(self, call, params=None):
        if call.key is not None:
            call.suspects |= self.world.obstacles(call.where, call.key, params)
        if call.built is not None:
            call.suspects |= self.world.hindrances(*call.built)
        if call.what == "ready":  # it asks for one after the other, and raises what others have failed with
            call.suspects |= {ClosedError}.union(*(self.world.obstacles(call.where, key) for key in KEYS))
            call.suspects |= {
                error for node in self.world.nodes.values() if node.home is call.where for error in node.told
            }

    def judge(self):
        """Looks at what has come to its end."""
        for call in tuple(self.calls):
            self.suspect(call)
            if not call.task.done():
                continue
            self.calls.remove(call)
            if call.task.cancelled():
                assert call.cancelled, f"{call!r} was cancelled, and not by us"
            elif (error := call.task.exception()) is not None:
                self.judge_error(call, error)

    def judge_error(self, call, error):
        if call.what in {"dispose", "invalidate"} and isinstance(error, BaseExceptionGroup):
            assert self.world.badly_closed > call.bad, f"{call!r} failed, and no closer did: {error!r}"
            for leaf in leaves(error):
                assert isinstance(leaf, InjectedError | TimeoutError), f"{call!r}: {leaf!r}"
            return
        if isinstance(error, AssertionError):
            raise error
        disturbances = self.world.disturbances - call.since
        key = call.key if call.what == "ask" else None
        if call.what == "invalidate":  # what was made from it may be rebuilt too
            call.suspects |= {NotFoundError, InvalidScopeError, ClosedError}
        assert explained(error, call.suspects, key, disturbances), f"{call!r}: {error!r}"

    def pick(self, number, among):
        return among[number % len(among)]

    def open_places(self):
        return [place for place in self.world.places if not place.closed]

    def target(self, number):
        """A place, and a key that means something there; one of runs and forks first."""
        known = [
            (place, key)
            for place in reversed(self.world.places)
            for key in reversed(KEYS)
            if not place.closed and place.find(key) is not None
        ]
        return self.pick(number, known) if known else (self.world.places[0], KEYS[0])

    def place(self, number):
        return self.pick(number, self.world.places)

    # -- the beginning -----------------------------------------------------------------------------------------------

    @initialize(
        hangs=st.sampled_from((False, False, False, True)),
        heard=st.booleans(),
        looks=st.booleans(),
        number=numbers,
    )
    def tree(self, hangs, heard, looks, number):
        """An app, a workflow, two runs and a fork, with some services."""
        self.hangs, self.looks = hangs, looks
        self.world = world = World(0.02 if hangs else 10.0, heard=heard)

        def opened():
            asyncio.get_running_loop().set_exception_handler(lambda _, told: self.complaints.append(str(told)))
            app = world.open_place("app", Scope.APP, [], stateful=False, run_id=None)
            workflow = world.open_place("workflow", Scope.WORKFLOW, [app], stateful=False, run_id=None)
            for name in ("r1", "r2"):
                world.open_place(name, Scope.RUN, [workflow, app], stateful=True, run_id=name)
            world.open_place("fork", Scope.TRANSIENT, [world.places[-1]], stateful=False, run_id="r2")

        self.do(opened)
        for where, spec in a_layout(Random(number)):
            note(f"{where}: {spec}")
            self.add(self.place(where), spec)

    @rule(number=numbers)
    def act(self, number):
        """Something is done; where that is not possible now, everything is asked for."""
        name, *arguments = an_action(Random(number))
        note(f"{name} {arguments}")
        if POSSIBLE.get(name, bool)(self) or name not in POSSIBLE:
            getattr(self, name)(*arguments)
        else:
            self.ask_for_all(4)

    def open_another(self, at, parent, named):
        """A container that looks in others, or a named scope of one."""
        parents = list(dict.fromkeys(self.pick(number, self.world.places) for number in at))
        name = f"x{len(self.world.places)}"

        def opened():
            if named and not self.place(parent).closed:
                above = self.place(parent)
                child = above.container.scope(name)
                assert above.container.scope(name) is child
                self.world.adopt(Place(name, child, child.level, [above], scope_of=above))
                return
            place = self.world.open_place(name, Scope.APP, [], stateful=True, run_id=None)
            for other in parents:
                if not other.closed:
                    place.container.extend(other.container)
                    place.parents.append(other)

        self.do(opened)

    def extend(self, where, other):
        """A container looks in one more, unless that one looks in it."""
        where, other = self.place(where), self.place(other)
        if where.closed or other.closed or other in where.parents:
            return

        def extended():
            if where in other.reach():
                with pytest.raises(CycleError):
                    where.container.extend(other.container)
                return
            where.container.extend(other.container)
            where.parents.append(other)

        self.do(extended)

    # -- registering -------------------------------------------------------------------------------------------------

    def register(self, where, spec):
        """A container gets a service of its own."""
        self.add(self.place(where), spec)

    def add(self, where, spec):
        if where.source() is None and not (spec.exclusive and spec.late):  # seldom it is tried all the same
            spec.selects = ()
        if spec.closer == "hangs" and not self.hangs:
            spec.closer = None
        spec.where = where
        options = {
            "scope": "transient" if spec.transient else "singleton",
            "lazy": not spec.eager,
            "retries": spec.retries,
            "exclusive": spec.exclusive,
        }
        if spec.family:
            options |= {"param_key": spec.param, "param_limit": spec.limit}

        def registered():
            factory = self.world.factory(spec)
            if where.closed:
                with pytest.raises(ClosedError):
                    where.container.register(spec.key, factory, **options)
                return
            if any(key == spec.key for key, _, _ in where.overrides):
                return
            if spec.key in where.specs:
                with pytest.raises(DuplicateKeyError):
                    where.container.register(spec.key, factory, **options)
                return
            where.specs[spec.key] = spec
            suspects = self.world.obstacles(where, spec.key)
            suspects |= {InvalidScopeError} if self.narrower(where, spec) else set()
            try:
                spec.unregister = where.container.register(spec.key, factory, **options)
            except Exception as error:  # noqa: BLE001 - which ones there may be is what is looked at
                assert explained(error, suspects, spec.key, 0), f"{spec} cannot be registered: {error!r}"  # noqa: PT017
                assert spec.eager or isinstance(error, InvalidScopeError)  # noqa: PT017
                del where.specs[spec.key]
                spec.registered = False
                others = {other for home, other, _ in self.world.nodes if home is where and other.key == spec.key}
                assert others - {spec} or spec.key not in where.container.debug_info()

        self.do(registered)

    def narrower(self, where, spec):
        """Tells whether a service asks by a parameter for one that does not live where it does."""
        found = [where.find(key) for key, how in spec.needs if how == "parameter"]
        return any(one is not None and isinstance(one[0], Spec) and self.world.home_of(*one) is None for one in found)

    def declare(self, where, spec):
        """The app or the workflow has a recipe, of which each scope makes its own."""
        where = self.place(where)
        if spec.closer == "hangs" and not self.hangs:
            spec.closer = None
        if any(key == spec.key for key, _, _ in where.overrides):
            return
        if spec.key in where.specs or where.closed or (where.name == "workflow" and spec.declared is Scope.APP):
            return
        spec.where = where

        def declared():
            try:
                spec.unregister = where.container.registry.add(
                    Recipe(spec.key, self.world.factory(spec), spec.declared)
                )
                where.specs[spec.key] = spec
            except InvalidScopeError:
                needed = any((spec.key, "parameter") in other.needs for other in where.specs.values())
                assert needed or self.narrower(where, spec)

        self.do(declared)

    def unregister(self, number):
        """A service is taken out; what was built of it stays until its container is closed."""
        where, key = self.target(number)
        spec = where.specs.get(key)
        if spec is None:
            return
        self.world.disturb()
        self.world.unsure({node for node in self.world.nodes.values() if node.spec is spec})
        for call in self.calls:
            call.suspects.add(NotFoundError)
        del where.specs[key]
        spec.registered = False
        self.do(spec.unregister)
        self.do(spec.unregister)

    # -- asking ------------------------------------------------------------------------------------------------------

    def ask(self, number, params, callers, how):
        """Callers ask for a service, all at once."""
        self.ask_for(*self.target(number), params, callers, how)

    def ask_anywhere(self, where, key, params):
        """Somebody asks for something that may not be there, in a container that may be closed."""
        self.ask_for(self.place(where), key, params, 1, "s")

    def ask_for_all(self, where):
        """Somebody asks for everything there is."""
        for key in KEYS:
            self.ask_for(self.place(where), key, 0, 1, "r")

    def ask_for(self, where, key, params, callers, how):
        found = where.find(key)
        params = self.params_for(where, key, params)
        node = self.world.locate(where, key, params)
        before = (node.instance, node.calls) if node and node.fresh and not where.closed else None
        stale = node.current if node is not None and node.stale else None
        sure = not self.world.obstacles(where, key, params) and not self.doubtful(where, key)
        got = []
        self.do(
            lambda: [
                self.begin("ask", where, lambda: self.asked(where, key, params, how, got), key, params)
                for _ in range(callers)
            ]
        )
        if where.closed or found is None or (found[1][-1].closed and not isinstance(found[0], Spec)):
            assert not got, f"{key!r} was had at {where}"
        elif not isinstance(found[0], Spec):
            assert got == [found[0][0]] * callers
        elif node is None:
            assert len(set(map(id, got))) == len(got), "callers share what is transient"
        elif before is not None and not node.home.closed:
            assert got == [before[0]] * callers, f"{node!r} was fresh and {got} was had"
            assert node.calls == before[1]
        else:
            assert len(set(map(id, got))) <= 1
            assert stale is None or not got or got[0].attempt is not stale, f"{node!r} was stale"
        if sure:
            assert len(got) == callers, f"{key!r} could be had at {where}"
            if node is not None and node.spec.family and not self.calls:
                family = [one for one in node.home.container.debug_info() if one.startswith(f"{key}:")]
                assert len(family) <= node.spec.limit, f"{family} of {node.home} are too many"

    def params_for(self, where, key, number):
        """Only members of a family are told apart by what they are asked for with."""
        found = where.find(key)
        return number if found is not None and isinstance(found[0], Spec) and found[0].family else None

    def doubtful(self, where, key):
        """Tells whether a service may take long or fail, by itself or by what it needs."""
        if self.world.gates or self.world.clock.sleeping:
            return True
        closure = self.world.closure(where, key)
        return self.world.gated(where, key) or any(self.world.failing.get(one) for one in closure)

    async def asked(self, where, key, params, how, got):
        """One caller; it looks at what it gets at the very moment that it gets it."""
        found = where.find(key)
        if how == "s":
            resolution = await where.container.resolve(key, params)
            assert resolution.ok is (resolution.error is None)
            if resolution.error is not None:
                raise resolution.error
            instance = resolution.instance
        else:
            instance = await where.container.require(key, params)
        if isinstance(instance, Thing):
            attempt = instance.attempt
            if attempt.spec.transient:
                self.world.lives(attempt, where)
            elif (
                not attempt.spec.family
                and attempt.node is not None
                and attempt.node.stale is not None
                and attempt.spec.registered
            ):
                assert not attempt.closes, f"{attempt!r} was handed out"
                self.world.catch_up()
                assert attempt.hidden or attempt.node.instance is instance
                assert how == "r" or attempt.hidden or resolution.version == attempt.node.version
            assert isinstance(found[0], tuple) or attempt.spec.key == key
        got.append(instance)
        return instance

    def open_gates(self, numbers):
        """Factories that waited go on."""

        def opened():
            for gate in dict.fromkeys(self.pick(number, self.world.gates) for number in numbers):
                gate.set()

        self.do(opened)

    def cancel(self, number, at_once):
        """A caller is cancelled in the middle of a build, perhaps at the moment that the build goes on."""
        call = self.pick(number, [call for call in self.calls if call.what == "ask"])

        def cancelled():
            for gate in tuple(self.world.gates) if at_once else ():
                gate.set()
            call.cancelled = True
            call.task.cancel()

        self.do(cancelled)

    def pass_time(self, seconds):
        """Factories that failed and are to be tried again are."""
        self.do(lambda: self.world.clock.advance(seconds))

    def fail(self, key, times):
        """The next builds of a service are going to fail."""
        self.world.failing[key] = times

    def ready(self, where):
        """Somebody waits until all is built that has to be."""
        where = self.place(where)
        self.do(lambda: self.begin("ready", where, where.container.ready))

    # -- changing ----------------------------------------------------------------------------------------------------

    def commit(self, where, changes, asks):
        """A state changes, and exactly who selected another value before is stale."""
        places = [place for place in self.world.places if place.state is not None]
        # Mostly one that somebody has selected from.
        read = [place for place in places if self.world.readers(place)]
        where = self.pick(where // 4, read) if read and where % 4 else self.pick(where, places)
        patch = {}
        for change in changes:
            patch = merge_patches(patch, CHANGES[change](where.data))
        data = merge(where.data, patch)
        stale = self.world.affected(where, data)
        doubtful = {node for node in self.world.nodes.values() if node.stale is None}
        self.world.disturb()
        self.world.invalidated.clear()
        for node in stale:
            node.stale = node.stale and None if node.stale is None else True
        where.data = data

        def committed():
            return where.state.set(patch)

        self.world.failed_keys.clear()
        self.do(committed)
        assert where.state.get() == data
        self.check_invalidated(stale - doubtful, stale | doubtful)
        for node in stale - doubtful:
            if node.wanted and not node.home.closed and node.spec.registered:
                excused = node.failed or node.current is None or self.world.obstacles(node.home, node.spec.key)
                # It needs only such that come before it in the alphabet.
                excused = excused or any(key <= node.spec.key for key in self.world.failed_keys)
                assert node.stale is False or excused or self.world.busy(node), f"{node!r} is watched"
        if asks:
            self.ask_for_all(4)

    def check_invalidated(self, all_of, only):
        if not self.world.heard:
            return
        # It is told by name: of two services of one name, in one container, nobody knows which it was.
        told = Counter((node.home, node.label) for node in self.world.invalidated)
        sure = Counter((node.home, node.label) for node in all_of if node.spec.registered)
        most = Counter((node.home, node.label) for node in only)
        for one, times in sure.items():
            enough = told[one] == times if times == most[one] else told[one] >= times
            assert enough, f"{one} was told to be stale {told[one]} times, not {times}"
        assert set(told) <= set(most), f"{set(told) - set(most)} were told to be stale"

    def invalidate(self, number, params, rebuild):
        """What was built is closed at once, and first what was built from it."""
        where, key = self.target(number)
        params = self.params_for(where, key, params)
        node = self.world.locate(where, key, params)
        found = where.find(key)
        if found is not None and node is None:
            return
        self.world.disturb()
        self.world.invalidated.clear()
        doubtful, roots = set(), set()
        if node is not None and node.current is not None:
            roots = {node.current}
        below = self.world.dependents(roots) | ({node} if roots else set())
        doomed = {one.current for one in below}
        doubtful = {one for one in self.world.nodes.values() if one.stale is not False}
        if not where.closed and node is not None and not node.home.closed:
            for attempt in self.world.attempts:
                known = attempt.home is not None and not attempt.home.orphaned
                if known and attempt.alive and attempt.below() & roots:
                    doomed.add(attempt)
        else:
            doomed = below = set()

        def begun():
            return self.begin(
                "invalidate", where, lambda: where.container.invalidate(key, params, rebuild=rebuild), key, params
            )

        self.world.letting_go = True
        call = self.do(begun)
        self.world.letting_go = False
        for attempt in doomed:
            if not attempt.opened:
                assert not attempt.alive, f"{attempt!r} is still there"
                if attempt.node.current is attempt:
                    attempt.node.gone()
                continue
            assert attempt.closes == 1, f"{attempt!r} was built from {node!r}, which was invalidated"
        assert rebuild or call.task.done(), f"{call!r} waits"
        self.check_invalidated(below - doubtful, below | doubtful | ({node} if node else set()))

    def override(self, number):
        """Somebody puts another value in the place of a service."""
        where, key = self.target(number)
        if where.closed:
            return
        value = object()

        def overridden():
            found = where.find(key)
            if found is None or (isinstance(found[0], Spec) and self.world.home_of(*found) is None):
                with pytest.raises((NotFoundError, ClosedError)):
                    where.container.override(key, value)
                return
            if (self.world.home_of(*found) if isinstance(found[0], Spec) else found[1][-1]).closed:
                with pytest.raises(ClosedError):
                    where.container.override(key, value)
                return
            self.unsure_of(where, key)
            where.overrides.append((key, value, where.container.override(key, value)))
            self.world.overriding.append((where, value))

        self.do(overridden)

    def unsure_of(self, where, key):
        """It is not said what becomes of what asked for a service that is overridden now, or is no more."""
        self.world.disturb()
        below = {
            node
            for node in self.world.nodes.values()
            if where in node.home.reach() and key in self.world.closure(node.home, node.spec.key)
        }
        self.world.unsure(below)

    def restore(self, where, number):
        """What was overridden is itself again; twice does no harm."""
        where = self.pick(where, [place for place in self.world.places if place.overrides])
        entry = self.pick(number, where.overrides)
        where.overrides.remove(entry)
        self.unsure_of(where, entry[0])
        self.do(entry[2])
        self.do(entry[2])

    def streaming(self):
        return [
            node
            for node in self.world.nodes.values()
            if node.current is not None
            and node.current.queue is not None
            and node.current.streams
            and not node.current.stream_ends
        ]

    def stream(self, number, what):
        """A stream has a value, an error or an end."""
        node = self.pick(number, self.streaming())
        self.world.disturb()
        self.world.invalidated.clear()
        version, current = node.version, node.current
        below = {one for one in self.world.dependents({current}) if not one.stale}
        doubtful = {one for one in self.world.nodes.values() if one.stale is None} | {node}
        if what == "value":
            for one in below - doubtful:
                one.stale = True
            value = Thing(current)
            if not self.world.heard:
                node.version, node.instance = node.version + 1, value
            self.do(lambda: current.queue.put_nowait(value))
            if current.closed or not node.spec.registered:
                return
            assert node.version == version + 1, "a value of the stream was not told"
            self.check_invalidated(below - doubtful, below | doubtful)
        elif what == "error":
            node.broken = True
            self.world.unsure(below)
            node.stale = True
            self.do(lambda: current.queue.put_nowait(InjectedError(node.spec.key)))
            told = node.spec.registered and self.world.heard
            assert not told or node.current is not current or not node.broken, (
                "the end of a stream by an error was not told"
            )
        else:
            self.do(lambda: current.queue.put_nowait(None))

    def watch(self, number, params):
        """Somebody wants to hear of a service."""
        where, key = self.target(number)
        params = self.params_for(where, key, params)
        node = self.world.locate(where, key, params)
        if where.closed or node is None or node.home.closed:
            return
        watching = Watching()

        def heard(event):
            if not watching.active:
                self.world.fault(f"{node!r}: {event.event} is told to somebody who does not listen any more")
            if event.event not in {"built", "rebuilt", "invalidated", "error", "stream"} or event.key != key:
                self.world.fault(f"{node!r}: {event!r}")
            if event.event in {"built", "rebuilt", "stream"}:
                seen = [node.home.container.peek(key, params)]
                said = [event.instance]
                if self.world.heard and not self.world.vague(node.home, key):
                    # A stream goes on when what it was made from has changed, or is no more.
                    usable = event.event != "stream" or (event.ok if node.stale is None else not node.stale)
                    seen += [node.instance, node.version, usable]
                    said += [event.instance, event.version, event.ok]
                clear = node.spec.registered and not node.spec.family and where.find(key)[0] is node.spec
                if clear and seen != said:
                    self.world.fault(f"{node!r}: {event.event} says {said}, and it is {seen}")
            if event.event == "error" and (event.ok or event.error is None):
                self.world.fault(f"{node!r}: an error without one")

        def subscribed():
            watch = where.container.watch(key, params)
            assert watch.get() is node.instance
            watching.stop = watch.subscribe(heard)

        node.watches.append(watching)
        self.watchings.append(watching)
        self.do(subscribed)

    def unsubscribe(self, number):
        """Somebody has heard enough."""
        watching = self.watchings.pop(number % len(self.watchings))
        watching.active = False
        self.do(watching.stop)
        self.do(watching.stop)

    # -- closing -----------------------------------------------------------------------------------------------------

    def dispose(self, where, at_once):
        """A container is closed, whatever is under way, perhaps at the moment that builds go on."""
        where = self.place(where)
        if at_once and len(self.open_places()) < 3:
            return
        self.close(where, at_once)

    def close(self, where, at_once):
        self.world.disturb()
        for call in self.calls:
            call.suspects.add(ClosedError)
        closing = [place for place in self.world.places if not place.closed and where in place.above()]

        def begun():
            for gate in tuple(self.world.gates) if at_once else ():
                gate.set()
            for place in closing:
                place.closed = True
            return self.begin("dispose", where, where.container.dispose)

        bad = self.badly_closed(closing)
        self.world.letting_go = True
        call = self.do(begun)
        self.world.letting_go = False
        assert call.task.done(), f"{where} is never closed"
        assert not self.world.heard or all(place.disposals == 1 for place in closing)
        if self.badly_closed(closing) > bad and call.task.exception() is None:
            self.world.fault(f"{where} was closed, and nobody was told that closers failed")
        for attempt in self.world.attempts:
            if attempt.home in closing and attempt.opened and attempt.node is not None:
                assert attempt.closes == 1, f"{attempt!r} was not closed with {where}"

    def badly_closed(self, places):
        """How many closers of some containers have not done what they should."""
        return sum(
            attempt.closes
            for attempt in self.world.attempts
            if attempt.spec.closer and attempt.home in places and attempt.status in {"published", "cancelled"}
        )

    # -- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def holds(self):
        """Looks at everything that holds at any time."""
        if self.world is None:
            return
        assert not self.world.faults, "\n".join(self.world.faults)
        assert not self.complaints, self.complaints
        if not self.world.gates and not self.world.clock.sleeping:
            waiting = [call for call in self.calls if not self.starved()]
            assert not waiting, f"{waiting} wait for nothing"
        for attempt in self.world.attempts:
            self.check_kept(attempt)
        for node in self.world.nodes.values():
            self.check_bare(node)
            self.check_seen(node)
        for place in self.world.places if self.looks else ():
            self.check_told(place)

    def starved(self):
        """Tells whether a stream has still to give its first value; here they all do at once."""
        return False

    def check_kept(self, attempt):
        """What is open is what somebody may get, or what such was built from."""
        if not attempt.opened or attempt.closes or attempt.status == "running":
            return
        if attempt.status == "made" and attempt.node is None and not attempt.spec.registered:
            return  # its recipe was taken out meanwhile, so nobody sees in which run it is: at the end it is closed
        if attempt.status != "published":
            raise AssertionError(f"{attempt!r} was given up and not cleaned up")
        if attempt.node is None:
            assert attempt.home is None or not attempt.home.closed or self.held(attempt), f"{attempt!r} is left open"
        elif attempt.node.current is not attempt:
            assert self.held(attempt), f"{attempt!r} is kept for nothing"

    def held(self, attempt):
        """Tells whether something that was built from it is alive, or being built, or was never to be closed."""
        # A build that waits for the rest of what it needs has taken it, and its factory was not called yet.
        waiting = bool(self.world.gates or self.world.clock.sleeping)
        specs = {spec for place in self.world.places for spec in place.specs.values()}
        taken_out = {node.spec for node in self.world.nodes.values() if not node.spec.registered}
        under_way = {spec for spec in taken_out for node in self.world.lingering if node.spec is spec}
        if waiting and any(key == attempt.spec.key for spec in specs | under_way for key, _ in spec.needs):
            return True
        return any(
            user.alive
            or user.status in {"running", "made"}
            or (user.status == "failed" and user.spec.retries and self.world.clock.sleeping)
            or (not user.opened and user.status == "published" and not (user.home and user.home.closed))
            for user in attempt.users
        )

    def check_bare(self, node):
        """What has nothing to close is let go unseen: when its container is closed, or when it was stale."""
        if node.current is None or node.current.opened:
            return
        below = node.current.below()
        above = [*(used.home for used in below), *(place for one in (node.current, *below) for place in one.stood_in)]
        excused = node.stale is not False or any(place is not None and place.closed for place in above)
        if node.home.closed or not node.spec.registered or (excused and node.seen() is None):
            node.gone()

    def check_seen(self, node):
        """What can be seen without asking is what there is."""
        spec, where = node.spec, node.home
        found = where.find(spec.key)
        if where.closed or not spec.registered or found is None or found[0] is not spec:
            return
        number = None if node.param is None else int(node.param)
        if spec.family and where.container.peek(spec.key, number) is None:
            if node.current is not None:
                self.evicted(node)
            return
        if spec.family and spec.exclusive:
            self.revived(node)
        assert where.container.peek(spec.key, number) is node.instance, f"{node!r} has {node.instance!r}"
        if spec.declared is None and self.looks:
            self.check_info(node, where.container.debug_info()[node.label])

    def evicted(self, node):
        """A parameter was let go: its family is full, and what was built of it is open only while it is used."""
        assert node.current.closes or self.held(node.current), f"{node!r} was let go and left open"
        node.let_go = (node.current, node.instance, node.version, node.stale)
        node.current, node.instance, node.version, node.stale = None, None, 0, False

    def revived(self, node):
        """An exclusive member that was let go, and something was made from, is there again: there is only one."""
        if node.current is None and node.let_go is not None and node.seen() is node.let_go[1]:
            node.current, node.instance, node.version, node.stale = node.let_go
            assert not node.current.closes, f"{node!r} was closed and is there again"

    def check_info(self, node, info):
        spec = node.spec
        # What was made and closed again in one step was not counted, where it was not told clearly.
        if not self.world.heard or self.world.vague(node.home, spec.key):
            assert info["version"] >= node.version or spec.family
            node.version = info["version"]
        assert info["version"] == node.version, f"{node!r} has version {node.version}, not {info['version']}"
        assert info["scope"] == "singleton"
        status = info["status"]
        if self.world.busy(node):
            clear = node.open and self.world.heard and not self.world.vague(node.home, spec.key)
            expected = {"building"} if clear else STATUSES
            assert status in expected, f"{node!r} is being built, not {status}"
        elif node.stale is None:
            assert status in STATUSES
        elif node.current is not None:
            expected = {"stale", "error"} if node.stale and node.failed else {"stale" if node.stale else "ready"}
            assert status in expected | ({"error", "stale"} if node.stale else set()), f"{node!r} is not {status}"
        else:
            expected = {"error"} if node.failed and self.world.heard else {"idle", "stale", "error"}
            assert status in expected, f"{node!r} is not {status}"
        if node.fresh and not self.world.busy(node):
            expected = {thing.attempt.spec.key for thing in node.current.uses if not thing.attempt.spec.transient}
            told = {name.partition(":")[0] for name in info["dependencies"]}
            assert expected <= told <= {key for key, _ in node.spec.needs}, (
                f"{node!r} depends on {expected}, not {told}"
            )

    def check_told(self, place):
        """What a container tells of itself can be stored, and is of the words there are."""
        info = place.container.debug_info()
        json.dumps(info)
        for label, one in info.items():
            assert one["status"] in STATUSES, f"{label} is {one['status']}"
            assert one["status"] == "disposed" or not place.closed, f"{label} of {place} is {one['status']}"
        if place.closed:
            return
        self.check_dependents(place, info)

    def check_dependents(self, place, info):
        for node in self.world.nodes.values():
            if node.home is not place or node.label not in info or not node.fresh or not node.spec.registered:
                continue
            if place.find(node.spec.key) != (node.spec, (place,)):
                continue
            fresh = {
                one.spec.key
                for one in self.world.nodes.values()
                if one.fresh
                and one.spec.registered
                and not one.home.orphaned
                and not self.world.busy(one)
                and any(thing.attempt is node.current for thing in one.current.uses)
            }
            told = {name.partition(":")[0] for name in info[node.label]["dependents"]}
            assert fresh <= told, f"{node!r} was used by {fresh}, not {told}"

    # -- the end -----------------------------------------------------------------------------------------------------

    def teardown(self):
        try:
            if self.world is not None:
                self.end()
        finally:
            self.runner.close()
            gc.collect()
            sys.unraisablehook = self.unraisable
        assert not self.complaints, self.complaints

    def end(self):
        for place in self.world.places[len(self.world.attempts) % 2 :: 2] + self.world.places:
            self.close(place, at_once=False)
        for key in KEYS:
            for place in self.world.places:
                refused(self, place, key)
        self.holds()
        assert not self.calls, f"{self.calls} never end"
        for attempt in self.world.attempts:
            assert attempt.closes == attempt.opened, f"{attempt!r} was closed {attempt.closes} times"
            assert attempt.streams == attempt.stream_ends, f"{attempt!r} has a stream that never ends"
        left = self.runner.run(tasks())
        assert not left, f"{left} are left"


def refused(machine, place, key):
    with pytest.raises(ClosedError):
        machine.runner.run(place.container.require(key))


async def tasks():
    await asyncio.sleep(0)
    return asyncio.all_tasks() - {asyncio.current_task()}


def leaves(error):
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in leaves(one)]
    return [error]


def merge_patches(one, other):
    """Two patches as one; where both speak of a place, the second counts."""
    merged = dict(one)
    for key, value in other.items():
        before = merged.get(key)
        both = isinstance(before, dict) and isinstance(value, dict)
        merged[key] = merge_patches(before, value) if both else value
    return merged


def profile(examples, steps=30, **rest):
    """The same histories every time, unless others are asked for."""
    return settings(
        max_examples=FUZZ or examples,
        phases=[Phase.generate, Phase.shrink],
        stateful_step_count=50 if FUZZ else steps,
        derandomize=not FUZZ,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        **rest,
    )


def test_any_history_of_a_tree_of_containers():
    """Whatever is done in whatever order, all promises of a container hold after each step and at the end."""
    run_state_machine_as_test(ContainerMachine, settings=profile(100))
