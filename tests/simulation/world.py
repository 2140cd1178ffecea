"""One state of the world, a value: the store's entry, the callers, the processes, the ledger."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, NamedTuple

from kvreplay._protocol.record import Claim, ReplayRecord, State, decode
from simulation.flows import Node, Refused
from simulation.scenario import START, TICK, Left, Scenario, name_of

Phase = Literal["new", "asking", "slow", "running", "following", "ended"]
Saw = Literal["", "answer", "doubt"]
RunEnd = Literal["returns", "fails", "keeps nothing"]

FLYING = ("asking", "slow", "running")


class Actor(NamedTuple):
    """One caller's attempt. A new one begins after each crash."""

    phase: Phase = "new"
    attempt: int = 1
    node: Node | None = None
    token: bytes | None = None
    held: bytes | None = None
    """The claim as it is stored now, while the handler runs."""
    renewal: Node | None = None
    renewals: int = 0
    bound: bool = False
    """The key is known to belong to this leader's params."""
    began: bool = False
    """The handler was called."""
    ran: bool = False
    """It had its effect."""
    excused: bool = False
    """The store failed when the end of the run was to be told."""
    waited: int = 0
    saw: Saw = ""
    """What the entry truly was when the store was last asked: a live answer, or in doubt."""
    slow: tuple[bytes | None, int] | None = None
    """What the store said and when, with the time not looked at yet."""
    reran: bool = False
    """Its run stands for one in doubt, of which nobody knows how it ended."""
    withdrew: bool = False
    """Its claim is gone, by its own doing."""
    seen: bytes | None = None
    """The record that an operator has seen and wants forgotten."""
    due: int | None = None
    """Until when it must have done what is to be on time."""


class Run(NamedTuple):
    """A run of the handler. One that returns has had an effect: a line of the ledger."""

    caller: int
    attempt: int
    token: bytes | None
    born: int
    """How many answers had been stored before."""
    end: RunEnd = "returns"

    @property
    def response(self) -> str:
        """What it answers, or the argument of its final failure."""
        return name_of(self.caller, self.attempt)


class Stored(NamedTuple):
    """An answer that was stored once, or a final failure. It ends early if it is forgotten."""

    response: str
    expires_at: int
    at: int
    forgotten: bool = False


class World(NamedTuple):
    now: int
    """True time. A place's own clock tells another, if it is ahead."""
    ahead: tuple[int, ...]
    """By how much the clock of each place is ahead."""
    told: tuple[int, ...]
    """The latest time that the clock of each place has told, even if it was set back since."""
    data: bytes | None
    due: int | None
    """When a sweep may drop the entry."""
    actors: tuple[Actor, ...]
    incarnations: tuple[int, ...]
    runs: tuple[Run, ...]
    answers: tuple[Stored, ...]
    acknowledged: frozenset[str]
    barred: frozenset[bytes]
    """Tokens that the ledger refuses since it said NOT_APPLIED about them."""
    lapsed: frozenset[bytes]
    """Tokens of living owners elsewhere whose lease was over when a policy let them be replaced."""
    left: Left
    asked: tuple[Any, ...] = ()
    """What the store was asked on the way here, where this is noted."""

    @classmethod
    def first(cls, scenario: Scenario) -> World:
        nothing: frozenset[Any] = frozenset()
        return cls(
            now=START,
            ahead=tuple(each * TICK for each in scenario.clocks),
            told=tuple(START + each * TICK for each in scenario.clocks),
            data=None,
            due=None,
            actors=tuple(Actor(renewals=scenario.renewals) for _ in scenario.callers),
            incarnations=(1,) * len(scenario.places),
            runs=(),
            answers=(),
            acknowledged=nothing,
            barred=nothing,
            lapsed=nothing,
            left=scenario.may,
        )

    @property
    def fastest(self) -> int:
        """What the clock tells that is ahead of all others."""
        return self.now + max(self.ahead)

    @property
    def furthest(self) -> int:
        """The latest time that any clock has told. What expires later has expired for nobody."""
        return max(self.told)

    def at(self, now: int, ahead: tuple[int, ...]) -> World:
        """Return the world at another time, or with clocks that were set."""
        told = (max(now + more, before) for more, before in zip(ahead, self.told, strict=True))
        return self._replace(now=now, ahead=ahead, told=tuple(told))

    def with_actor(self, index: int, actor: Actor) -> World:
        return self._replace(actors=(*self.actors[:index], actor, *self.actors[index + 1 :]))

    def is_alive(self, run: Run) -> bool:
        """Whether the run's flow goes on."""
        actor = self.actors[run.caller]
        return actor.attempt == run.attempt and actor.phase in FLYING

    def answer(self, response: str) -> Stored | None:
        return next((each for each in self.answers if each.response == response), None)

    def run_of(self, index: int) -> Run | None:
        """Return the last run of what this caller attempts now."""
        attempt = self.actors[index].attempt
        runs = (run for run in reversed(self.runs) if run.caller == index)
        return next((run for run in runs if run.attempt == attempt), None)

    def holder(self, token: bytes) -> int | None:
        """Return the caller whose living flow has begun with this token."""
        for index, actor in enumerate(self.actors):
            if actor.phase in FLYING and actor.token == token:
                return index
        return None


class View(NamedTuple):
    """A stored record as the invariants look at it."""

    state: State
    response: str | None
    expires_at: int | None
    claim: Claim | None


@cache
def view(data: bytes | None) -> View | None:
    if data is None:
        return None
    record = decode(data)
    response = record.load_response()
    if record.state is State.FAILED:
        response = failure_in(record)
    return View(record.state, response, record.expires_at, record.claim)


def failure_in(record: ReplayRecord) -> Any:
    """Return the one argument of a stored failure."""
    name, arguments = record.load_failure()
    assert name == f"{Refused.__module__}.{Refused.__qualname__}"
    (argument,) = arguments
    return argument


def owner_of(scenario: Scenario, process: int, incarnation: int) -> str:
    return f"{scenario.places[process]}:{process}:{incarnation}"


def place_of(claim: Claim) -> int:
    return int(claim.owner.split(":")[0])


def look_up(scenario: Scenario, world: World, process: int, claim: Claim) -> bool | None:
    """What ``kvreplay._runtime.liveness`` tells a process about a claim's owner."""
    place, owner, incarnation = map(int, claim.owner.split(":"))
    if place != scenario.places[process]:
        return None
    if incarnation != world.incarnations[owner]:
        return False
    if owner != process:
        return True
    holder = world.holder(claim.token)
    return holder is not None and scenario.callers[holder].process == process


def clock_at(scenario: Scenario, world: World, process: int) -> int:
    """What the clock tells at a process's place."""
    return world.now + world.ahead[scenario.places[process]]


def in_doubt(scenario: Scenario, world: World, process: int, now: int | None = None) -> bool:
    """Whether the entry is a claim that this process may take for abandoned.

    ``now``: by this time, instead of what its clock tells.
    """
    entry = view(world.data)
    if entry is None or entry.claim is None:
        return False
    if entry.claim.ended_at is not None:
        return True
    runs = look_up(scenario, world, process, entry.claim)
    if runs is None:
        now = clock_at(scenario, world, process) if now is None else now
        return entry.claim.lease_expires_at <= now
    return not runs


@cache
def describe(data: bytes | None) -> str:
    entry = view(data)
    if entry is None:
        return "nothing"
    if entry.claim is not None:
        owner = entry.claim.token.rstrip(b"\0").decode().split(".")[0]
        if entry.claim.ended_at is not None:
            return f"the claim of {owner} (ended at {clock(entry.claim.ended_at)})"
        return f"the claim of {owner} (lease until {clock(entry.claim.lease_expires_at)})"
    assert entry.expires_at is not None
    if entry.state is State.TOMBSTONE:
        return f"a tombstone (until {clock(entry.expires_at)})"
    if entry.state is State.FAILED:
        return f"the failure {entry.response!r} (until {clock(entry.expires_at)})"
    return f"the answer {entry.response!r} (until {clock(entry.expires_at)})"


def clock(now: int) -> str:
    return f"t{(now - START) // TICK}"
