"""The traces of the model, and their steps on the real flows, compared after each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import attrs

from kvreplay._protocol.steps import InDoubtPolicy
from simulation.answers import Move
from simulation.flows import REAL, Protocol
from simulation.invariants import Violation
from simulation.moves import Moves
from simulation.scenario import START, TICK, Caller, Left, OnTime, Scenario, name_of
from simulation.world import World, view

MOVES = {
    **dict.fromkeys(("reads", "looks_again", "reads_to_tell", "reads_to_settle"), "{who} reads "),
    **dict.fromkeys(("looks_up", "looks_up_to_settle"), "{who} looks the owner up"),
    **dict.fromkeys(("asks_ledger", "visits"), "{who} asks the ledger"),
    "reconciles": "{who} puts the answer",
    "claims": "{who} puts the claim",
    "runs_handler": "{who} runs the handler",
    "declines": "{who}: the (handler declines|ledger refuses)",
    "loses_contact_before": "{who}: the handler loses contact, and nothing happened",
    "loses_contact_after": "{who}: the handler loses contact, and it happened",
    "returns": "{who}: the handler returns",
    "completes": "{who} puts the answer",
    "withdraws": "{who} (removes|puts the claim)",
    "tells_end": "{who} puts the claim of .* [(]ended at",
    "reads_to_renew": "the renewer of {who} reads",
    "renews": "the renewer of {who} puts the claim",
    "settles": "{who} (removes|puts the answer)",
    "crashes": "P{process} crashes",
    "ticks": "the clock moves",
}
"""The steps of the model, and how the simulation tells the same."""

FATES = {
    "in_flight": "ends with InFlightError",
    "in_doubt": "ends with InDoubtError",
    "claim_lost": "ends with ClaimLostError",
    "declined": "ends with Declined",
    "unsure": "ends with IndeterminateError",
    "settled": "ends with True",
    "left_alone": "ends with False",
    "going": "",
}


class Then(NamedTuple):
    """What came of a step: what the store holds, and how the caller has ended."""

    store: str
    fate: str


class Step(NamedTuple):
    caller: int
    action: str
    then: Then | None = None
    """``None``: an invariant was seen broken by this step."""

    @property
    def kind(self) -> tuple[str, ...]:
        """What the traces are to have met: the step, whose record it left, and how it ended."""
        if self.then is None:
            return self.action, "broken", ""
        record, _, owner = self.then.store.partition(" of ")
        whose = "" if not owner else "own " if f"{owner} ".startswith(self._names) else "another's "
        return self.action, whose + record, " ".join(self.then.fate.split()[:2])

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(f"{name_of(self.caller, attempt)} " for attempt in (1, 2))


class Trace(NamedTuple):
    policy: str
    ahead: tuple[int, ...]
    steps: tuple[Step, ...]
    broken: str
    """The invariant that its last step breaks; empty: none."""


class Diverged(AssertionError):
    """The real flows do something else than the model."""


def traced(printed: str) -> Trace:
    """Read what the model has printed."""
    policy, ahead, steps, broken = "", (), [], ""
    for line in printed.splitlines():
        what, *words = line.split()
        if what == "SCENARIO":
            policy, ahead = words[0], tuple(map(int, words[1:]))
        elif what == "STEP":
            steps.append(Step(int(words[0]), words[1]))
        elif what == "THEN":
            steps[-1] = steps[-1]._replace(then=_then(*words))
        elif what == "BROKEN":
            broken = " ".join(words)
    return Trace(policy, ahead, tuple(steps), broken)


def _then(kind: str, caller: str, attempt: str, lease: str, fate: str, *whose: str) -> Then:
    owner = name_of(int(caller), int(attempt))
    store = {
        "nothing": "nothing",
        "claim": f"claim of {owner} until {lease}",
        "ended": f"ended claim of {owner} until {lease}",
        "answer": f"answer of {owner}",
    }[kind]
    if fate == "answered":
        return Then(store, f"is answered {name_of(*map(int, whose))!r}")
    return Then(store, FATES[fate])


def told(world: World) -> str:
    """Tell what the store of the simulation holds as :class:`Then` does."""
    entry = view(world.data)
    if entry is None:
        return "nothing"
    if entry.claim is None:
        return f"answer of {entry.response}"
    owner = entry.claim.token.rstrip(b"\0").decode().partition(".")[0]
    ended = "ended " if entry.claim.ended_at is not None else ""
    return f"{ended}claim of {owner} until {(entry.claim.lease_expires_at - START) // TICK}"


def replay(trace: Trace, bounds: Any, protocol: Protocol = REAL) -> None:
    """Make the steps of a trace on the flows.

    Raises:
        Diverged: a step cannot be made, or something else came of it.
        Violation: an invariant is seen broken.
    """
    scenario = Scenario(
        (Caller("A", 0), Caller("A", 1), Caller("A", 2, "operator")),
        may=Left(crashes=bounds.crashes, ticks=bounds.ticks),
        places=(0, 1, 2),
        on_in_doubt=InDoubtPolicy(trace.policy),
        lease=bounds.lease,
        ttl=1000,  # nothing expires in the model
        wait=0,
        renewals=bounds.renewals,
        ends=("returns", "declines", "unsure"),
        clocks=trace.ahead,
        on_time=OnTime(1) if bounds.on_time else None,
        finds_no_living=bounds.on_time,
    )
    played = _Played(Moves(scenario, protocol), World.first(scenario))
    for step in trace.steps:
        played.make(step)
    list(played.moves.of(played.world))  # what comes later is checked too


@attrs.define
class _Played:
    moves: Moves
    world: World
    made: list[str] = attrs.field(factory=list)

    def make(self, step: Step) -> None:
        label, self.world = self._move(step)
        self.made.append(label)
        if step.then is None:
            raise self._diverged(step, "it broke nothing")
        if (there := told(self.world)) != step.then.store:
            raise self._diverged(step, f"the store has: {there}; the model's: {step.then.store}")
        _, _, fate = label.partition("; it ")
        if step.action != "ticks" and fate != step.then.fate:
            raise self._diverged(step, f"the caller {fate!r}; the model's {step.then.fate!r}")

    def _move(self, step: Step) -> Move:
        actor = self.world.actors[step.caller]
        who = f"{name_of(step.caller, actor.attempt)} (P{step.caller})"
        wanted = MOVES[step.action].format(who=re.escape(who), process=step.caller)
        for label, after in self._offered(step):
            if re.match(wanted, label):
                return label, after
        raise self._diverged(step, "it cannot be made")

    def _offered(self, step: Step) -> Iterator[Move]:
        if step.action == "crashes":
            return self.moves._crashes(self.world)
        if step.action == "ticks":
            return self.moves._time(self.world)
        return self.moves._moves_of(self.world, step.caller, self.world.actors[step.caller])

    def _diverged(self, step: Step, what: str) -> Diverged:
        made = "\n".join(f"{number:4}. {each}" for number, each in enumerate(self.made, 1))
        return Diverged(f"caller {step.caller} {step.action}: {what}\n{made}")


def same_words(violation: Violation) -> str:
    """Tell an invariant as the model does, to which every run is X."""
    return re.sub(r"""(['"])r\d'*\1""", "X", violation.broken)
