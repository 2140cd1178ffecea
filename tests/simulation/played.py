"""Random schedules of the scenarios, played on real stores.

Every step that the simulated store has answered is made on a real one, in that order, with the
very same bytes. Each simulated process has a store object of its own, and another after a crash.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, NamedTuple

import attrs

from kvreplay import KeyNotFoundError
from kvreplay._protocol.keys import name, scope_name
from kvreplay._protocol.steps import READ, CheckAndPut
from simulation.answers import IN_TRANSACTIONS, Move
from simulation.flows import Answer
from simulation.matrix import EVERY_TIME
from simulation.moves import Moves
from simulation.scenario import KEY
from simulation.world import World, describe

TOLD = {
    "an outcome lost after it": "after it happened",
    "an outcome lost before it": "before it happened",
    "a renewal": "the renewer",
}
"""What is met in what a move is told as."""


class Asked(NamedTuple):
    """A step that the store has answered to a process: a read or a check-and-put."""

    process: int
    step: Any
    found: bytes | None

    @property
    def kind(self) -> str:
        if self.step is READ:
            return "read nothing" if self.found is None else "read an entry"
        if self.found != self.step.expected:
            return "put lost"
        return "put won" if self.step.value is not None else "removal won"


class Transacted(NamedTuple):
    """The steps of one transaction. It is ``joined`` if it is the caller's own."""

    process: int
    steps: tuple[Asked, ...]
    commits: bool
    joined: bool = False

    @property
    def kind(self) -> str:
        if self.joined:
            return "joined, and committed" if self.commits else "joined, and undone"
        if self.commits:
            return "transaction committed"
        put = any(each.kind in ("put won", "removal won") for each in self.steps)
        return "put undone" if put else "transaction undone"


class Crashed(NamedTuple):
    process: int
    kind: str = "crash"


class Swept(NamedTuple):
    now: int
    kind: str = "sweep"


class Noting(Moves):
    """Moves that note in the world what the store is asked."""

    def _note(self, world: World, index: int, step: Any) -> World:
        process = self._callers[index].process
        return _with(world, Asked(process, step, world.data))

    def _inside(self, label: str, world: World, index: int, end: str) -> tuple[World, Answer]:
        inside, answer = super()._inside(label, world._replace(asked=()), index, end)
        commits = inside.data != world.data
        transacted = Transacted(self._callers[index].process, inside.asked, commits)
        return inside._replace(asked=(*world.asked, transacted)), answer

    def _within(self, label: str, world: World, index: int, end: str) -> tuple[World, Answer, bool]:
        inside, answer, ran = super()._within(label, world._replace(asked=()), index, end)
        transacted = Transacted(self._callers[index].process, inside.asked, True, joined=True)
        return inside._replace(asked=(*world.asked, transacted)), answer, ran

    def _undone(self, world: World, inside: World) -> World:
        *_, transacted = inside.asked
        return _with(super()._undone(world, inside), transacted._replace(commits=False))

    def _crashes(self, world: World) -> Iterator[Move]:
        for label, after in super()._crashes(world):
            pairs = zip(world.incarnations, after.incarnations, strict=True)
            (process,) = (number for number, (old, new) in enumerate(pairs) if old != new)
            yield label, _with(after, Crashed(process))

    def _time(self, world: World) -> Iterator[Move]:
        for label, after in super()._time(world):
            swept = after.left.sweeps < world.left.sweeps
            yield label, _with(after, Swept(world.fastest)) if swept else after


def _with(world: World, asked: Any) -> World:
    return world._replace(asked=(*world.asked, asked))


@cache
def moves_of(scenario: str) -> Noting:
    return Noting(EVERY_TIME[scenario])


def schedule(seed: int, transactional: bool) -> Iterator[tuple[str, World]]:
    """Yield each world of a random schedule, and what has led to it.

    What few schedules have is chosen more often: renewals, sweeps, lost outcomes, and transactions,
    if the store has any.
    """
    chance = random.Random(seed)
    groups = ("", "renewals", "sweeps", "faults", *(("transactions",) if transactional else ()))
    some = chance.choice(groups)
    moves = moves_of(chance.choice(titles(some)))
    world = World.first(moves.scenario)
    yield str(moves.scenario), world
    while ahead := list(moves.of(world)):
        weights = [weight(label, world) for label, _ in ahead]
        ((label, world),) = chance.choices(ahead, weights)
        yield label, world
        world = world._replace(asked=())


def weight(label: str, world: World) -> float:
    """Return how likely a move is, beside 1 of any other."""
    if "the clock moves" in label:
        return 0.2 if world.due is None else 5  # of use once there is an answer
    if "a sweep removes" in label or "happened" in label:
        return 5
    return 0.3 if "crashes" in label else 1


@cache
def titles(some: str) -> list[str]:
    """Return the scenarios with this, and those with transactions only if they are wanted."""
    found = []
    for title, scenario in EVERY_TIME.items():
        has = {
            "": True,
            "renewals": scenario.renewals > 0,
            "sweeps": scenario.may.sweeps > 0,
            "faults": scenario.may.faults > 0,
            "transactions": any(caller.kind in IN_TRANSACTIONS for caller in scenario.callers),
        }
        if has[some] and has["transactions"] is (some == "transactions"):
            found.append(title)
    return found


class Undoing(Exception):
    """Ends a transaction's block, which so changes nothing."""


@attrs.define
class Stage:
    """Real stores, one a process.

    Args:
        restarted: takes a process's store, and returns the one that it has after its restart.
        joining: takes a store, and begins a transaction of a caller's own for a block, in which it
            gives the store's calls; ``None``: one of the store.
    """

    stores: dict[int, Any]
    restarted: Callable[[Any], Any]
    transactional: bool = True
    joining: Callable[[Any], AbstractContextManager[Any]] | None = None
    met: Counter[str] = attrs.field(factory=Counter)
    """How often each kind of step was made."""
    namespace: str = ""

    def play(self, schedules: int) -> None:
        """Play so many schedules, each in a namespace of its own."""
        for seed in range(schedules):
            self.namespace = f"schedule-{seed}"
            self._play(schedule(seed, self.transactional))

    def _play(self, steps: Iterator[tuple[str, World]]) -> None:
        told: list[str] = []
        for number, (label, world) in enumerate(steps):
            told.append(label)
            self.met.update(what for what, text in TOLD.items() if text in label)
            try:
                for asked in world.asked:
                    self.met[asked.kind] += 1
                    self._make(asked)
                if any(not asked.kind.startswith("read") for asked in world.asked):
                    self._compare(world, number % len(self.stores))
            except AssertionError as error:
                error.add_note("\n".join(told))
                raise
        self._compare_at_last(world)

    def _make(self, asked: Any) -> None:
        if isinstance(asked, Asked):
            self._ask(self.stores[asked.process], asked)
        elif isinstance(asked, Transacted):
            store = self.stores[asked.process]
            begin = self.joining if asked.joined else None
            with (
                contextlib.suppress(Undoing),
                begin(store) if begin else store.transaction() as inner,
            ):
                for each in asked.steps:
                    self.met[each.kind] += 1
                    self._ask(inner, each)
                if not asked.commits:
                    raise Undoing
        elif isinstance(asked, Crashed):
            self.stores[asked.process] = self.restarted(self.stores[asked.process])
        else:
            assert self._sweep(asked.now) == 1, "a sweep left what was due"

    def _ask(self, store: Any, asked: Asked) -> None:
        if asked.step is READ:
            with contextlib.suppress(KeyNotFoundError):
                assert store.read(*self._address) == asked.found, "a read found another entry"
                return
            assert asked.found is None, "a read found nothing"
            return
        step: CheckAndPut = asked.step
        found = store.check_and_put(
            *self._address,
            expected=step.expected,
            value=step.value,
            expires_at=step.expires_at,
        )
        assert describe(found) == describe(asked.found), "a check-and-put found another entry"
        assert found == asked.found

    def _compare(self, world: World, process: int) -> None:
        """Compare the entry as a process sees it, and see that it is not swept too early."""
        here = None if world.data is None else (world.data, world.due)
        try:
            entry = self.stores[process].read_entry(*self._address)
        except KeyNotFoundError:
            assert here is None, "the entry is gone"
        else:
            assert (entry.value, entry.expires_at) == here, "another entry, or expiry, is there"
        if world.due is None or world.now < world.due:
            assert self._sweep(world.now) == 0, "a sweep removed what was not due"

    def _compare_at_last(self, world: World) -> None:
        """Sweep just before the entry is due, and when it is."""
        if world.due is not None:
            assert self._sweep(world.due - 1) == 0, "a sweep removed what was not due"
            assert self._sweep(world.due) == 1, "a sweep left what was due"

    def _sweep(self, now: int) -> int:
        removed: int = self.stores[0].sweep(self.namespace, now, 10).removed
        return removed

    @property
    def _address(self) -> tuple[str, str, str]:
        return self.namespace, scope_name(KEY.scope), name(KEY.id)
