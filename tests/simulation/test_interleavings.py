"""Every schedule of up to three requests for one key.

``INTERLEAVINGS=long pytest tests/simulation`` walks for about half an hour instead of a
minute, in a few GB of memory: more crashes, faults and clock moves together.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from functools import cache

import pytest

from kvreplay._protocol.steps import Call
from simulation.answers import Move
from simulation.explore import Counterexample, Explored, explore, shortest
from simulation.flows import Answer, Node
from simulation.matrix import AT_LENGTH, EVERY_TIME
from simulation.moves import Moves
from simulation.scenario import Caller, Left, Scenario
from simulation.world import Actor, World

pytestmark = pytest.mark.exhaustive

LONG = os.environ.get("INTERLEAVINGS") == "long"
SCENARIOS = EVERY_TIME | AT_LENGTH if LONG else EVERY_TIME


@cache
def walked(name: str) -> Explored:
    return explore(SCENARIOS[name])


@pytest.fixture(scope="module")
def tally(request: pytest.FixtureRequest) -> Iterator[dict[str, Explored]]:
    """Takes what was walked, and prints it when all of it was."""
    rows: dict[str, Explored] = {}
    yield rows
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{'schedules':>25} {'states':>9}  scenario")
        for name, row in rows.items():
            print(f"{row.schedules:25,} {row.states:9,}  {name}")
        schedules = sum(row.schedules for row in rows.values())
        states = sum(row.states for row in rows.values())
        print(f"{schedules:25,} {states:9,}  all {len(rows)} scenarios")


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_schedule_breaks_an_invariant(name: str, tally: dict[str, Explored]) -> None:
    tally[name] = walked(name)


def test_the_schedules_meet_every_end() -> None:
    """What is never met is not tested."""
    ends: Counter[str] = Counter()
    for name in EVERY_TIME:
        ends.update(walked(name).ends)
    assert ends["execute: gives up"]
    shared = {"the answer", "ExpiredError", "InDoubtError", "ParamsMismatchError"}
    shared |= {"Refused", "what is not kept"}
    assert ends.keys() >= {f"execute: shares {end}" for end in shared}
    answers = {"answered", "replayed", "ParamsMismatchError", "ExpiredError"}
    answers |= {"Refused", "replayed a failure", "answered, and nothing kept"}
    assert ends.keys() >= {f"transact: {end}" for end in answers}
    joined = {"rolled back", "asks again", "ClaimLostError", "Declined", "StoreUnavailableError"}
    joined |= {"InDoubtError", "InFlightError"}
    assert ends.keys() >= {f"joined: {end}" for end in answers | joined}
    assert ends.keys() >= {
        f"execute: {end}"
        for end in (
            *answers,
            *("InDoubtError", "InFlightError", "ClaimLostError", "refused by its own process"),
            *("IndeterminateError", "Interrupted", "Declined", "NotAppliedError"),
            *("OutcomeUnknownError", "StoreUnavailableError"),
        )
    }
    lookups = {
        "replayed",
        "replayed a failure",
        "None",
        "InDoubtError",
        "InFlightError",
        "ParamsMismatchError",
    }
    assert ends.keys() >= {f"lookup: {end}" for end in lookups}
    forgets = ("True", "False", "InDoubtError", "InFlightError")
    assert ends.keys() >= {
        f"{each}: {end}" for each in ("forget", "forget seen") for end in forgets
    }
    assert ends.keys() >= {"operator: True", "operator: False", "walk: True", "walk: False"}


class WithoutSingleFlight(Moves):
    """Nobody in a process follows anybody."""

    def _leader(self, world: World, process: int) -> None:
        return None


class WithoutLanding(Moves):
    """A leader that ends tells nobody."""

    def _land(self, label: str, world: World, index: int, node: Node) -> World:
        return world


class GoingTogether(Moves):
    """A follower whose time is over takes its leader with it."""

    def _give_up(self, world: World, index: int, actor: Actor) -> Iterator[Move]:
        leader = self._leader(world, self._callers[index].process)
        for label, after in super()._give_up(world, index, actor):
            assert leader is not None  # or it would not follow
            yield label, self._end(after, leader, "cancelled")


class ToldBeforeItsCommit(Moves):
    """An answer counts although the caller's transaction is rolled back."""

    def _over(
        self, label: str, world: World, inside: World, index: int, answer: Answer, ran: bool
    ) -> Iterator[Move]:
        yield from super()._over(label, world, inside, index, answer, ran)
        undone = world.with_actor(index, inside.actors[index])
        yield self._tell(f"{label}, which is told, and is rolled back", undone, index, answer)


class SettledApart(Moves):
    """The transaction of the placeholder ends with the handler, and the answer has another."""

    def _within(self, label: str, world: World, index: int, end: str) -> tuple[World, Answer, bool]:
        while True:
            node = world.actors[index].node
            world, answer = self._answer_within(label, world, index, end)
            if isinstance(node.step, Call):
                return world, answer, True
            world = world.with_actor(index, world.actors[index]._replace(node=node.after(answer)))


@pytest.mark.parametrize(
    ("wrong", "broken"),
    [
        (ToldBeforeItsCommit, "an answer was given that was never stored"),
        (SettledApart, "a placeholder is committed"),
    ],
)
def test_a_joined_run_is_one_commit(wrong: type[Moves], broken: str) -> None:
    scenario = Scenario((Caller("A", 0, "joined"), Caller("A", 1, "joined")))
    with pytest.raises(Counterexample, match=broken):
        explore(scenario, moves=wrong)
    ends = explore(scenario).ends
    assert ends.keys() == {"joined: answered", "joined: replayed", "joined: rolled back"}


def test_who_does_not_learn_of_the_commit_asks_again() -> None:
    """The same request tells: it gets the answer that was committed, or it runs."""
    walk = explore(Scenario((Caller("A", 0, "joined"),), Left(faults=1)))
    assert walk.ends.keys() == {
        *("joined: answered", "joined: replayed", "joined: rolled back"),
        *("joined: asks again", "joined: StoreUnavailableError"),
    }


def test_a_handler_that_commits_leaves_its_key_in_doubt() -> None:
    walk = explore(Scenario((Caller("A", 0, "joined"),) * 2, ends=("commits",)))
    assert walk.ends.keys() == {"joined: ClaimLostError", "joined: InDoubtError"}
    walk = explore(Scenario((Caller("A", 0, "joined"),) * 2))
    assert not walk.ends.keys() & {"joined: ClaimLostError", "joined: InDoubtError"}


def test_a_counterexample_is_told_step_by_step() -> None:
    scenario = Scenario((Caller("A"), Caller("A")), lease=None)
    with pytest.raises(Counterexample, match="twice at a time in one process"):
        explore(scenario, moves=WithoutSingleFlight)
    assert str(shortest(scenario, moves=WithoutSingleFlight)).splitlines() == [
        "BROKEN: the handler runs twice at a time in one process",
        "in: r1: execute A in P0, r2: execute A in P0; places 0; in doubt: raise; lease None, ttl 1, tombstone 0",
        "   1. r1 (P0) takes the lead in its process",
        "   2. r1 (P0) reads nothing",
        "   3. r1 (P0) runs the handler, which returns",
        "   4. r2 (P0) takes the lead in its process",
        "   5. r2 (P0) reads nothing",
        "   6. r2 (P0) runs the handler",
    ]


def test_who_waits_for_ever_is_seen() -> None:
    scenario = Scenario((Caller("A"), Caller("A")))
    with pytest.raises(Counterexample, match="somebody waits for ever"):
        explore(scenario, moves=WithoutLanding)
    assert explore(scenario).ends["execute: shares the answer"]


def test_who_gives_up_harms_nobody() -> None:
    scenario = Scenario((Caller("A"),) * 3, Left(timeouts=1))
    with pytest.raises(Counterexample, match="somebody waits for ever"):
        explore(scenario, moves=GoingTogether)
    ends = explore(scenario).ends
    assert ends["execute: gives up"]
    assert ends.keys() == {
        "execute: answered",
        "execute: gives up",
        "execute: shares the answer",
        "execute: replayed",
    }


@pytest.mark.parametrize("callers", [1, 2, 3, 4])
def test_all_orders_are_walked(callers: int) -> None:
    """Lookups of an absent key are one step each: n! schedules, over n + 1 states."""
    lookups = Scenario((Caller("A", 0, "lookup"),) * callers)
    walk = explore(lookups)
    assert (walk.schedules, walk.states) == ((1, 2, 6, 24)[callers - 1], callers + 1)


class EachByItsName(Moves):
    """No caller may take another's place: each order in which they begin is walked."""

    def _alike(self, world: World, index: int) -> list[int]:
        return []


@pytest.mark.parametrize(
    "name",
    [
        "raise: three processes, a crash",
        "raise: one process, other params, a crash, expiry",
        "raise: two in one process, one in another, a crash, expiry",
        "rerun: three machines, a lease over",
        "reconcile: two machines, clocks that are set anew, what has expired is run again",
    ],
)
def test_who_takes_whose_place_changes_nothing(name: str) -> None:
    walk, full = walked(name), explore(SCENARIOS[name], moves=EachByItsName)
    assert (walk.schedules, walk.ends.keys()) == (full.schedules, full.ends.keys())
    assert walk.states < full.states


def test_a_crash_comes_at_every_step() -> None:
    """Of read, claim, run, answer: not at all, or after the first, second or third of them."""
    walk = explore(Scenario((Caller("A"),), Left(crashes=1)))
    assert walk.schedules == 4
    assert walk.ends == {"execute: answered": 2, "execute: InDoubtError": 2}
