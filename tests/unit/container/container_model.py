"""Instrumented services beside a model of what a container has of them; for `test_machine.py`.

Every call of a factory is an `Attempt` that counts its own closings and knows what it was made from. A `Node` is one
service, for one parameter, in the container that it lives in: what it has to be now, by what was done and heard so far.
What is found wrong inside factories, closers and subscribers goes to `World.faults`: an assertion raised there would
be taken for a failure of theirs.
"""

from __future__ import annotations

import asyncio
import inspect
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from piecework.container.container import Container
from piecework.container.scope import Scope, home
from piecework.errors import ClosedError, InvalidScopeError, NotFoundError, UnstableError
from piecework.testing.clock import VirtualClock

KEYS = ("a", "b", "c", "d", "e")
INITIAL = {"n": 0, "m": {"c": 0, "l": [1]}}
SELECTORS = (
    lambda s: s["n"],
    lambda s: s["n"] > 1,
    lambda s: s["m"]["c"],
    lambda s: len(s["m"]["l"]),
    lambda s: s["m"],
    lambda s: s["m"]["c"] if s["n"] else "none",
    lambda s: s.get("z"),
    sorted,
)
WITHOUT_LOOP = {"bare", "bare_generator", "bare_async_generator", "plain", "generator"}
BARE = {"bare", "bare_generator", "bare_async_generator"}


class InjectedError(RuntimeError):
    """What a factory, a stream or a closer of the tests fails with."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


@dataclass(eq=False)
class Spec:
    """One registration of a service.

    Attributes:
        needs: Pairs of a key and how it is asked for: as a parameter, by require or by resolve.
        selects: Indexes into `SELECTORS`.
        late: It selects after its gate, not before.
        family: 0, or how many parameters there are: one singleton each.
        closer: None, or how the closers misbehave: "raises", "hangs".
        initial: A stream gives an initial instance at once.
        declared: The scope of a recipe of the registry; None for one that was registered.
    """

    key: str
    form: str
    needs: tuple[tuple[str, str], ...] = ()
    selects: tuple[int, ...] = ()
    late: bool = False
    transient: bool = False
    family: int = 0
    limit: int = 2
    exclusive: bool = False
    eager: bool = False
    retries: int = 0
    closer: str | None = None
    initial: bool = False
    declared: Scope | None = None
    where: Place | None = None
    registered: bool = True

    def __post_init__(self) -> None:
        if self.declared is not None:
            self.family = self.retries = 0
            self.eager = self.exclusive = False
            self.transient = self.declared is Scope.TRANSIENT
        if self.transient:
            self.family, self.exclusive, self.eager = 0, False, False
        if self.form in BARE:
            # It takes no context: nothing is known of it but what it was given.
            self.selects, self.family = (), 0
        if self.form == "bare" or (self.form in {"generator", "bare_generator"} and self.closer == "hangs"):
            self.closer = None
        if self.form == "stream" and (self.transient or self.family):
            self.form = "awaited"
        if self.family:
            self.eager = False
        known = KEYS[: KEYS.index(self.key)]
        how = {"require": "parameter", "resolve": "parameter"} if self.form in WITHOUT_LOOP else {}
        self.needs = tuple({key: (key, how.get(ask, ask)) for key, ask in self.needs if key in known}.values())

    def param(self, params: Any) -> str | None:
        return str((params or 0) % self.family) if self.family else None


@dataclass(eq=False)
class Attempt:
    """One call of a factory.

    Attributes:
        stood_in: Where what it was given stood for services.
        hidden: That something stood for it when it was made: nobody saw when that was.
    """

    spec: Spec
    param: str | None
    node: Node | None
    status: str = "running"
    uses: list[Thing] = field(default_factory=list)
    stood_in: list[Place] = field(default_factory=list)
    hidden: bool = False
    users: list[Attempt] = field(default_factory=list)
    read: list[tuple[int, Any]] = field(default_factory=list)
    opened: bool = False
    closes: int = 0
    closed: bool = False
    home: Place | None = None
    thing: Thing | None = None
    queue: Any = None
    streams: int = 0
    stream_ends: int = 0

    def __repr__(self) -> str:
        return f"<{self.spec.key}:{self.param} in {self.node or self.home} {self.status} closes={self.closes}>"

    @property
    def alive(self) -> bool:
        if self.opened:
            return self.status == "published" and not self.closed
        # Nothing of it is closed: it is there as long as it can be seen.
        return self.node is not None and self.status == "published" and self.node.seen() is self.thing

    def below(self) -> set[Attempt]:
        """All that it was made from, at any depth."""
        found: set[Attempt] = set()
        todo = [thing.attempt for thing in self.uses]
        while todo:
            attempt = todo.pop()
            if attempt not in found:
                found.add(attempt)
                todo += [thing.attempt for thing in attempt.uses]
        return found


@dataclass(eq=False)
class Thing:
    """An instance: of a stream there are several for one attempt."""

    attempt: Attempt

    def __post_init__(self) -> None:
        self.attempt.thing = self


@dataclass(eq=False)
class Node:
    """A service, for one parameter, in the container where it lives.

    Attributes:
        stale: None where it is not said whether it is.
        open: A build has started and has neither completed nor failed.
        disturbed: Something happened since, for which the build may have been given up.
        failed: The last build failed.
        told: What a build that nobody waited for may have failed with at any time, for `ready` to raise.
        let_go: What its family has let go, and something was made from: the fields as they were.
    """

    spec: Spec
    home: Place
    param: str | None
    current: Attempt | None = None
    instance: Any = None
    version: int = 0
    stale: bool | None = False
    open: bool = False
    disturbed: bool = False
    failed: bool = False
    broken: bool = False
    calls: int = 0
    told: set[type[Exception]] = field(default_factory=set)
    let_go: tuple[Attempt, Any, int, bool | None] | None = None
    watches: list[Watching] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"{self.home.name}/{self.label}"

    @property
    def label(self) -> str:
        return self.spec.key if self.param is None else f"{self.spec.key}:{self.param}"

    def seen(self) -> Any:
        """What the container has of it, without asking for it."""
        return self.home.container.peek(self.spec.key, None if self.param is None else int(self.param))

    def gone(self) -> None:
        """There is no instance any more."""
        self.current = self.instance = None

    @property
    def fresh(self) -> bool:
        return self.current is not None and self.stale is False

    @property
    def wanted(self) -> bool:
        return self.spec.eager or any(watching.active for watching in self.watches)


@dataclass(eq=False)
class Watching:
    """One subscription."""

    stop: Any = None
    active: bool = True


@dataclass(eq=False)
class Place:
    """A container and what was done to it."""

    name: str
    container: Container
    level: Scope
    parents: list[Place]
    state: Any = None
    data: dict[str, Any] | None = None
    specs: dict[str, Spec] = field(default_factory=dict)
    overrides: list[tuple[str, Any, Any]] = field(default_factory=list)
    scope_of: Place | None = None
    closed: bool = False
    disposals: int = 0

    def __repr__(self) -> str:
        return self.name

    def reach(self) -> list[Place]:
        found = [self]
        for parent in self.parents:
            found += [place for place in parent.reach() if place not in found]
        return found

    @property
    def orphaned(self) -> bool:
        """Whether something that it looks in is closed: nobody above that knows of it any more."""
        return any(place.closed for place in self.reach())

    def above(self) -> list[Place]:
        """Itself, and what it is a named scope of: it is closed with these."""
        return [self, *(self.scope_of.above() if self.scope_of is not None else ())]

    def find(self, key: str) -> tuple[Any, tuple[Place, ...]] | None:
        """What a key means here: a `Spec`, or an override as a tuple; and the way to it."""
        for known, value, _ in reversed(self.overrides):
            if known == key:
                return (value,), (self,)
        if key in self.specs:
            return self.specs[key], (self,)
        for parent in self.parents:
            found = parent.find(key)
            if found is not None:
                return found[0], (self, *found[1])
        return None

    def source(self) -> Place | None:
        """Whose state is within reach."""
        if self.state is not None:
            return self
        if self.level is Scope.TRANSIENT:
            return self.parents[0].source() if self.parents else None
        return None if self.scope_of is None else self.scope_of.source()


class World:
    """All containers, services, calls and what was heard of them.

    Args:
        close_timeout_seconds: Of each container.
        heard: Whether anybody listens to events. Where nobody does, a container may take quicker ways; then what was
            built counts as there when all has come to rest.
    """

    def __init__(self, close_timeout_seconds: float, *, heard: bool) -> None:
        self.clock = VirtualClock()
        self.heard = heard
        self.close_timeout_seconds = close_timeout_seconds
        self.faults: list[str] = []
        self.places: list[Place] = []
        self.nodes: dict[tuple[Place, Spec, str | None], Node] = {}
        self.attempts: list[Attempt] = []
        self.gates: list[asyncio.Event] = []
        self.failing: dict[str, int] = {}
        self.failed_keys: set[str] = set()
        self.transient_keys: set[str] = set()
        self.hanging = 0
        self.badly_closed = 0
        self.disturbances = 0
        self.letting_go = False
        self.invalidated: list[Node] = []
        self.lingering: dict[Node, set[type[Exception]]] = {}
        self.calm = 0
        self.overriding: list[tuple[Place, Any]] = []

    def fault(self, text: str) -> None:
        self.faults.append(text)

    # -- where things live -------------------------------------------------------------------------------------------

    def open_place(self, name: str, level: Scope, parents: list[Place], *, stateful: bool, run_id: str | None) -> Place:
        state = Container.State(INITIAL) if stateful else None
        container = Container(
            name,
            level=level,
            state=state,
            parents=[parent.container for parent in parents],
            clock=self.clock,
            close_timeout_seconds=self.close_timeout_seconds,
            run_id=run_id,
        )
        return self.adopt(Place(name, container, level, parents, state, dict(INITIAL) if stateful else None))

    def adopt(self, place: Place) -> Place:
        self.places.append(place)
        if not self.heard:
            return place
        for event in ("build:start", "build:complete", "build:error", "artifact:invalidated", "stream:emit"):
            place.container.on(event, lambda e: self._heard(place, e))
        place.container.on("container:dispose", lambda e: self._disposed(place, e))
        return place

    def node(self, where: Place, spec: Spec, param: str | None) -> Node:
        return self.nodes.setdefault((where, spec, param), Node(spec, where, param))

    def home_of(self, spec: Spec, way: tuple[Place, ...]) -> Place | None:
        index = home(spec.declared, [place.level for place in way])
        if spec.transient:
            return way[0]
        return None if index is None else way[index]

    def locate(self, where: Place, key: str, params: Any) -> Node | None:
        """The node that a key means at a place; None where it means none, or no singleton."""
        found = where.find(key)
        if found is None or not isinstance(found[0], Spec) or found[0].transient:
            return None
        lives = self.home_of(*found)
        return None if lives is None else self.node(lives, found[0], found[0].param(params))

    def closure(self, where: Place, key: str) -> set[str]:
        """The keys of all that a service may need."""
        found = where.find(key)
        if found is None or not isinstance(found[0], Spec):
            return {key}
        spec, lives = found[0], self.home_of(*found) or where
        return {key}.union(*(self.closure(lives, need) for need, _ in spec.needs))

    def gated(self, where: Place, key: str) -> bool:
        return any(
            spec.form in {"gated", "stream"} or spec.retries
            for place in self.places
            for spec in place.specs.values()
            if spec.key in self.closure(where, key)
        )

    def obstacles(self, where: Place, key: str, params: Any = None) -> set[type[Exception]]:
        """Why a service cannot be had, apart from failures; empty when it can."""
        if where.closed:
            return {ClosedError}
        found = where.find(key)
        if found is None:
            return {NotFoundError} | ({ClosedError} if any(place.closed for place in where.reach()) else set())
        spec, way = found
        if not isinstance(spec, Spec):
            return {ClosedError} if way[-1].closed else set()
        lives = self.home_of(spec, way)
        if lives is None:
            return {NotFoundError, InvalidScopeError}
        if lives.closed:
            return {ClosedError}
        if spec.transient:
            return self.hindrances(spec, lives)
        node = self.node(lives, spec, spec.param(params))
        return set() if node.fresh else self.hindrances(spec, lives) | self.lingering.get(node, set())

    def linger(self) -> None:
        """Notes what builds under way may fail with: what they have asked for already may mean something else later."""
        for node in tuple(self.nodes.values()):
            if node.wanted:
                node.told |= self.hindrances(node.spec, node.home)
        self.lingering = {
            node: self.lingering.get(node, set()) | self.hindrances(node.spec, node.home)
            for node in tuple(self.nodes.values())
            if self.busy(node)
        }
        for node, errors in self.lingering.items():
            errors.update(*(self.lingering[other] for other in self.lingering if self.hidden(other, node.home)))
        if not self.lingering:
            self.calm = self.disturbances

    def hidden(self, node: Node, where: Place) -> bool:
        """Tells whether its key means something else by now: a build may have asked for it before that."""
        found = where.find(node.spec.key)
        return found is None or found[0] is not node.spec

    @property
    def since(self) -> int:
        """How much had happened when the oldest build began that is under way, or by now."""
        return self.calm if self.lingering else self.disturbances

    def hindrances(self, spec: Spec, lives: Place) -> set[type[Exception]]:
        """Why a service that lives somewhere cannot be built."""
        errors: set[type[Exception]] = {InvalidScopeError} if spec.selects and lives.source() is None else set()
        return errors.union(*(self.obstacles(lives, need) for need, _ in spec.needs))

    def asked_for(self, where: Place, key: str) -> tuple[Spec, Place] | None:
        """What is built for who asks now, whatever comes to stand for it meanwhile."""
        found = None if where.closed else where.find(key)
        if found is None or not isinstance(found[0], Spec):
            return None
        lives = self.home_of(*found)
        return None if lives is None else (found[0], lives)

    # -- factories ---------------------------------------------------------------------------------------------------

    def factory(self, spec: Spec) -> Any:
        make = getattr(self, f"_{spec.form}")(spec)
        context = [] if spec.form in BARE else ["ctx"]
        parameters = [*context, *(key for key, how in spec.needs if how == "parameter")]
        if spec.transient:
            self.transient_keys.add(spec.key)
        make.__signature__ = inspect.Signature(
            [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=object) for name in parameters]
        )
        return make

    def _bare(self, spec: Spec) -> Any:
        def make(*args: Any, **given: Any) -> Thing:
            with self._attempting(spec, args, given) as (_, attempt):
                self._fail(spec)
                return Thing(attempt)

        return make

    def _bare_generator(self, spec: Spec) -> Any:
        inner = self._generator(spec)

        def make(*args: Any, **given: Any) -> Any:
            yield from inner(*args, **given)

        return make

    def _bare_async_generator(self, spec: Spec) -> Any:
        inner = self._async_generator(spec)

        async def make(*args: Any, **given: Any) -> Any:
            values = inner(*args, **given)
            yield await anext(values)
            await anext(values, None)

        return make

    def _plain(self, spec: Spec) -> Any:
        def make(*args: Any, **given: Any) -> Thing:
            with self._attempting(spec, args, given) as (ctx, attempt):
                self._closes(ctx, attempt)
                self._select(ctx, attempt)
                self._fail(spec)
                return Thing(attempt)

        return make

    def _generator(self, spec: Spec) -> Any:
        def make(*args: Any, **given: Any) -> Any:
            with self._attempting(spec, args, given) as (ctx, attempt):
                self._select(ctx, attempt)
                self._fail(spec)
                attempt.opened = True
            yield Thing(attempt)
            with self._closing(attempt):
                if spec.closer == "raises":
                    raise InjectedError(spec.key)

        return make

    def _awaited(self, spec: Spec) -> Any:
        async def make(*args: Any, **given: Any) -> Thing:
            with self._attempting(spec, args, given) as (ctx, attempt):
                self._closes(ctx, attempt)
                await self._work(ctx, attempt)
                return Thing(attempt)

        return make

    _gated = _awaited

    def _async_generator(self, spec: Spec) -> Any:
        async def make(*args: Any, **given: Any) -> Any:
            with self._attempting(spec, args, given) as (ctx, attempt):
                await self._work(ctx, attempt)
                attempt.opened = True
            yield Thing(attempt)
            await self._close(attempt)

        return make

    def _stream(self, spec: Spec) -> Any:
        async def values(attempt: Attempt) -> Any:
            attempt.streams += 1
            try:
                while (value := await attempt.queue.get()) is not None:
                    if isinstance(value, Exception):
                        raise value
                    yield value
            finally:
                attempt.stream_ends += 1

        async def make(*args: Any, **given: Any) -> Any:
            with self._attempting(spec, args, given) as (ctx, attempt):
                self._closes(ctx, attempt)
                await self._work(ctx, attempt)
                attempt.queue = asyncio.Queue()
                first = Thing(attempt)
                if spec.initial:
                    ctx.stream(values(attempt))
                    return first
                attempt.queue.put_nowait(first)
                return await ctx.stream(values(attempt))

        return make

    @contextmanager
    def _attempting(self, spec: Spec, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        names = [*(() if spec.form in BARE else ("ctx",)), *(key for key, how in spec.needs if how == "parameter")]
        given = {**dict(zip(names, args, strict=False)), **given}
        ctx = given.pop("ctx", None)
        lives = None
        if not spec.transient:
            lives = spec.where
            if spec.declared is not None:
                name = str(spec.declared)
                if spec.declared is Scope.RUN:
                    name = None if ctx is None else ctx.run_id
                lives = next((place for place in self.places if place.name == name), None)
        node = None if lives is None else self.node(lives, spec, spec.param(ctx.params) if spec.family else None)
        attempt = Attempt(spec, node.param if node else None, node, home=lives)
        if node is not None:
            self._check_alone(ctx, node)
            node.calls += 1
            if spec.exclusive and spec.family:  # what was made from one that its family has let go goes before
                earlier = {one for one in self.attempts if one.node is node}
                self.unsure({one for one in self.nodes.values() if one.current and one.current.below() & earlier})
        self.attempts.append(attempt)
        for thing in given.values():
            self._uses(attempt, thing, waited=True)
        try:
            yield ctx, attempt
            attempt.status = "published" if spec.transient else "made"
        except BaseException as error:
            attempt.status = "failed" if isinstance(error, Exception) else "cancelled"
            if node is not None and not self.heard:
                node.failed = attempt.status == "failed"
            raise

    def _check_alone(self, ctx: Any, node: Node) -> None:
        self.catch_up()
        for other in self.attempts:
            if other.node is not node:
                continue
            if other.status == "running":
                self.fault(f"{node!r} is built twice at a time")
            elif (
                other.opened
                and not other.closed
                and not (other.status == "published" or (other.status == "made" and self.unheard(other)))
            ):
                self.fault(f"{node!r} is built again before {other!r} was cleaned up")
            elif other is node.current and node.spec.exclusive and other.opened and not other.closed:
                self.fault(f"{node!r} is exclusive and is built beside its old instance")
        before = node.current
        # What was made from something exclusive goes with it, as soon as that is to be made anew.
        gone = before is not None and (before.closes or any(used.spec.exclusive for used in before.below()))
        gone = gone or not node.spec.registered  # and so does what is taken out
        going = self.letting_go or node.param is not None or gone
        let_go = going and ctx is not None and ctx.current is None
        if ctx is not None and not node.spec.exclusive and ctx.current is not node.instance and not let_go:
            self.fault(f"ctx.current of {node!r} is {ctx.current!r}, not {node.instance!r}")

    def _uses(self, attempt: Attempt, thing: Any, *, waited: bool = False) -> None:
        """Notes that something was given to a factory; perhaps after the others that it waited for."""
        if not isinstance(thing, Thing):
            attempt.stood_in += [place for place, value in self.overriding if value is thing]
            return
        attempt.uses.append(thing)
        used = thing.attempt
        used.users.append(attempt)
        self.lives(used, attempt.home)
        if used.closes and not waited:
            self.fault(f"{attempt!r} was given {used!r}, which is closed")

    def lives(self, attempt: Attempt, home: Place | None) -> None:
        """What is transient lives where it was asked for, and so does what it asked for itself."""
        if attempt.spec.transient and attempt.home is None and home is not None:
            attempt.home = home
            for thing in attempt.uses:
                self.lives(thing.attempt, home)

    def _closes(self, ctx: Any, attempt: Attempt) -> None:
        attempt.opened = True
        ctx.on_cleanup(lambda: self._close(attempt))

    async def _work(self, ctx: Any, attempt: Attempt) -> None:
        if not attempt.spec.late:
            self._select(ctx, attempt)
        for key, how in attempt.spec.needs:
            if how == "require":
                self._uses(attempt, await ctx.use(lambda deps, key=key: deps.require(key)))
            elif how == "resolve":
                resolution = await ctx.resolve(key)
                if resolution.ok:
                    self._uses(attempt, resolution.instance)
        if attempt.spec.form == "gated":
            gate = asyncio.Event()
            self.gates.append(gate)
            try:
                await gate.wait()
            finally:
                if gate in self.gates:
                    self.gates.remove(gate)
        else:
            await asyncio.sleep(0)
        if attempt.spec.late:
            self._select(ctx, attempt)
        self._fail(attempt.spec)

    def _select(self, ctx: Any, attempt: Attempt) -> None:
        for index in attempt.spec.selects:
            value = ctx.select(SELECTORS[index])
            attempt.read.append((index, value))
            source = attempt.home.source() if attempt.home else None
            if source is not None and value != SELECTORS[index](source.data):
                self.fault(f"{attempt!r} selected {value!r} from {source.data}")

    def _fail(self, spec: Spec) -> None:
        if self.failing.get(spec.key):
            self.failing[spec.key] -= 1
            self.failed_keys.add(spec.key)
            raise InjectedError(spec.key)

    # -- closing -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _closing(self, attempt: Attempt) -> Any:
        attempt.closes += 1
        if attempt.closes > 1:
            self.fault(f"{attempt!r} is closed again")
        for user in attempt.users:
            if user.home is None or user.home.orphaned:
                continue
            # What has nothing to close may have been given up unseen.
            unseen = user.status == "made" and user.opened and not user.closed and self.unheard(user)
            if user.alive or unseen:
                self.fault(f"{attempt!r} is closed while {user!r}, which was built from it, is alive")
        if attempt.spec.closer:
            self.badly_closed += 1
        try:
            yield
        finally:
            attempt.closed = True
            node = attempt.node
            if node is not None and node.current is attempt:
                node.gone()

    async def _close(self, attempt: Attempt) -> None:
        with self._closing(attempt):
            await asyncio.sleep(0)
            if attempt.streams != attempt.stream_ends:
                self.fault(f"the stream of {attempt!r} goes on while it is closed")
            if attempt.spec.closer == "raises":
                raise InjectedError(attempt.spec.key)
            if attempt.spec.closer == "hangs":
                self.hanging += 1
                try:
                    await asyncio.Event().wait()
                finally:
                    self.hanging -= 1

    # -- what is heard -----------------------------------------------------------------------------------------------

    def _heard(self, place: Place, event: Any) -> None:
        try:
            if place.disposals:
                self.fault(f"{place} tells {event.event} of {event.key!r} after it has said that it is disposed")
            getattr(self, "_on_" + event.event.replace(":", "_"))(place, event)
        except Exception as error:  # noqa: BLE001 - a subscriber's error would only be logged
            self.fault(f"{event.event} of {event.key!r}: {error!r}")

    def vague(self, place: Place, key: str) -> bool:
        """Tells whether an event may be about several services of a name: an earlier one too, or one of callers'."""
        specs = {spec for home, spec, _ in self.nodes if home is place and spec.key == key}
        return key in self.transient_keys or len(specs) > 1

    def _nodes_of(self, place: Place, event: Any) -> list[Node]:
        param = None if event.param is None else str(event.param)
        return [
            node
            for (home, spec, one), node in self.nodes.items()
            if home is place and spec.key == event.key and one == param
        ]

    def _on_build_start(self, place: Place, event: Any) -> None:
        node = self._singleton(place, event)
        if node is None or self.vague(place, event.key):
            return
        if node.open and not node.disturbed:
            self.fault(f"{node!r} starts a build while one is under way")
        node.open, node.disturbed, node.failed, node.broken = True, False, False, False

    def _singleton(self, place: Place, event: Any) -> Node | None:
        """The node that an event is about; None for transients. The one that is registered now, if it is doubtful."""
        nodes = self._nodes_of(place, event)
        spec = place.specs.get(event.key)
        if spec is None or spec.declared is not None:
            spec = next((one.specs[event.key] for one in place.reach() if event.key in one.specs), spec)
        mine = [node for node in nodes if node.spec is spec]
        found = mine or [node for node in nodes if node.open or node.current] or nodes
        if found:
            return found[0]
        if spec is None or spec.transient or (spec.declared is None and spec.where is not place):
            return None
        return self.node(place, spec, None if event.param is None else str(event.param))

    def _on_build_complete(self, place: Place, event: Any) -> None:
        if self.vague(place, event.key):
            return
        self.find_homes()
        made = [
            attempt
            for attempt in self.attempts
            if attempt.status == "made" and attempt.node in self._nodes_of(place, event) and not attempt.closes
        ]
        if not made:
            if self._singleton(place, event) is not None and not self.vague(place, event.key):
                self.fault(f"{place} says that {event.key!r} was built, and no factory has made it")
            return
        node = made[-1].node
        assert node is not None
        if not node.open and not self.vague(place, event.key):
            self.fault(f"{node!r} is complete, and no build had started")
        if node.param is not None:
            node.version = event.version - 1  # one that was let go begins anew
        if event.version != node.version + 1:
            self.fault(f"{node!r} had version {node.version} and has {event.version} now")
        if event.duration_seconds is None or event.duration_seconds < 0 or event.duration != event.duration_seconds:
            self.fault(f"{node!r} took {event.duration_seconds!r} s")
        self.catch_up()  # what it was made from may have been completed unheard
        self._check_holds(made[-1])
        self.publish(made[-1])

    def publish(self, attempt: Attempt) -> None:
        """What a factory made is what there is from now on."""
        node = attempt.node
        assert node is not None
        attempt.status = "published"
        node.current, node.instance = attempt, attempt.thing
        node.version += 1
        node.stale = node.open = node.failed = False

    def unheard(self, attempt: Attempt) -> bool:
        """Tells whether its completion is told to nobody, or not clearly."""
        return not self.heard or (attempt.node is not None and self.vague(attempt.node.home, attempt.spec.key))

    def catch_up(self) -> None:
        """Where nobody listens: what was made and is open is there."""
        self.find_homes()
        made = [
            attempt
            for attempt in self.attempts
            if attempt.status == "made" and attempt.node is not None and not attempt.closes and self.unheard(attempt)
            # What has nothing to close is there if it can be seen; else it was given up.
            if attempt.opened or attempt.node.seen() is attempt.thing
        ]
        for attempt in self.attempts:
            if attempt.status == "made" and attempt.node is not None and attempt not in made:
                found = attempt.node.home.find(attempt.spec.key)
                attempt.hidden = attempt.hidden or (found is not None and not isinstance(found[0], Spec))
        for attempt in made:
            self.publish(attempt)
        for attempt in made:
            if attempt.hidden:
                self.unsure({attempt.node})
            else:
                self._check_holds(attempt)

    def find_homes(self) -> None:
        """A factory without a context does not know for which run it made something: it is where it can be seen."""
        for attempt in self.attempts:
            if attempt.node is None and not attempt.spec.transient and attempt.status == "made":
                for place in self.places:
                    found = place.find(attempt.spec.key)
                    if place.level is Scope.RUN and place.scope_of is None and found and found[0] is attempt.spec:
                        node = self.node(place, attempt.spec, None)
                        if node.seen() is attempt.thing:
                            attempt.node, attempt.home = node, place
                            for thing in attempt.uses:
                                self.lives(thing.attempt, place)

    def busy(self, node: Node) -> bool:
        """Tells whether a service may be being built."""
        if self.heard and not self.vague(node.home, node.spec.key):
            return node.open or bool(node.spec.retries and self.clock.sleeping)
        running = any(attempt.status == "running" for attempt in self.attempts)
        return running or bool(self.clock.sleeping)

    def _check_holds(self, attempt: Attempt) -> None:
        """All that a build read has to be so still when it completes."""
        for thing in attempt.uses:
            used = thing.attempt
            if used.closes:
                self.fault(f"{attempt!r} completes with {used!r}, which is closed")
            node = used.node
            if node is None or node.stale is None or node.param is not None or not node.spec.registered or used.hidden:
                continue
            if node.current is not used or node.stale:
                self.fault(f"{attempt!r} completes with {used!r}, which is stale")
            elif node.instance is not thing:
                self.fault(f"{attempt!r} completes with an earlier value of {used!r}")
        source = attempt.home.source() if attempt.home else None
        for index, value in attempt.read:
            if source is not None and SELECTORS[index](source.data) != value:
                self.fault(f"{attempt!r} completes with {value!r}, which the state does not say any more")

    def _on_build_error(self, place: Place, event: Any) -> None:
        node = self._singleton(place, event)
        if node is None or (self.vague(place, event.key) and not node.broken):
            return
        if event.error is None:
            self.fault(f"{node!r} fails without an error")
        if event.attempt is None:
            if not node.broken:
                self.fault(f"the stream of {node!r} broke, and nobody broke it")
            node.broken = False
        else:
            if not node.open:
                self.fault(f"{node!r} fails, and no build had started")
            node.open, node.failed = False, True

    def _on_artifact_invalidated(self, place: Place, event: Any) -> None:
        node = self._singleton(place, event)
        if node is not None:
            self.invalidated.append(node)

    def _on_stream_emit(self, place: Place, event: Any) -> None:
        node = event.value.attempt.node
        node.version += 1
        node.instance = event.value

    def _disposed(self, place: Place, event: Any) -> None:
        place.disposals += 1
        if event.key is not None or place.disposals > 1:
            self.fault(f"{place} tells for the {place.disposals}. time that {event.key!r} is disposed")

    # -- staleness ---------------------------------------------------------------------------------------------------

    def disturb(self) -> None:
        """Builds under way may be given up for what happens now."""
        self.disturbances += 1
        for node in self.nodes.values():
            node.disturbed = True

    def dependents(self, roots: set[Attempt]) -> set[Node]:
        """The services whose instance was made from any of some attempts, at any depth."""
        found = {node for node in self.nodes.values() if node.current is not None and node.current.below() & roots}
        for node in found:
            if node.home.orphaned and not node.stale:
                node.stale = None
        return {node for node in found if not node.home.orphaned}

    def readers(self, source: Place) -> list[Node]:
        """The services whose instance was made from what is selected of a state."""
        return [
            node
            for node in self.nodes.values()
            if node.current is not None and node.current.read and node.home.source() is source
        ]

    def affected(self, source: Place, data: dict[str, Any]) -> set[Node]:
        """The services that other data of a state make stale, which are not so already."""
        read = {
            node
            for node in self.readers(source)
            if node.current is not None and any(SELECTORS[index](data) != value for index, value in node.current.read)
        }
        below = self.dependents({node.current for node in read if node.current is not None})
        return {node for node in read | below if not node.stale}

    def unsure(self, nodes: set[Node]) -> None:
        """Forgets whether some services are stale, and all that was made from them."""
        below = self.dependents({node.current for node in nodes if node.current is not None})
        for node in nodes | below:
            if node.stale is False:
                node.stale = None


def explained(error: BaseException, suspects: set[type[Exception]], key: str | None, disturbances: int) -> bool:
    """Tells whether a service may have failed like that; each needs only such that come before it in the alphabet."""
    if isinstance(error, InjectedError):
        return key is None or error.key <= key
    if isinstance(error, UnstableError):
        return disturbances >= 5
    return isinstance(error, tuple(suspects))
