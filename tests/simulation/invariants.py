"""What must never be seen, whatever the schedule."""

from __future__ import annotations

from kvreplay import (
    ClaimLostError,
    ExpiredError,
    InDoubtError,
    InFlightError,
    KVReplayError,
    ParamsMismatchError,
)
from kvreplay._protocol.record import Claim, State, decode_response
from kvreplay._protocol.steps import (
    READ,
    UNDO,
    Call,
    CheckAndPut,
    ExpiredPolicy,
    InDoubtPolicy,
    Raised,
    Settled,
)
from simulation.flows import Declined, Interrupted, Node, Refused
from simulation.scenario import TICK, Scenario
from simulation.world import Actor, Run, Stored, View, World, failure_in, in_doubt, place_of, view

LONGEST = 60  # answers that a flow may need


class Violation(Exception):
    """An invariant was seen broken, by the move that ``label`` tells."""

    def __init__(self, label: str, broken: str) -> None:
        super().__init__(broken)
        self.label = label
        self.broken = broken


# Answers.


def answer_of(label: str, settled: object) -> str:
    if not isinstance(settled, Settled):
        raise Violation(label, f"a request got {settled!r} instead of an answer")
    if settled.failure is not None:
        return failure_in(settled.failure)
    return decode_response(settled.response)


def acknowledge(label: str, scenario: Scenario, world: World, index: int, response: str) -> World:
    """A caller has its answer: it is stored, of its own params, and equal to everybody else's."""
    stored = world.answer(response)
    if stored is None:
        raise Violation(label, "an answer was given that was never stored")
    owner = next(run.caller for run in world.runs if run.response == response)
    if scenario.callers[owner].params != scenario.callers[index].params:
        raise Violation(label, "a request got the answer to other params")
    for other in world.acknowledged:
        if other == response:
            continue
        first, second = sorted((stored, world.answer(other)), key=world.answers.index)
        if second.at < _over(scenario, first):
            raise Violation(label, f"two answers in one lifetime: {other!r} and {response!r}")
    world = world._replace(acknowledged=world.acknowledged | {response})
    check_kept(label, world)
    return world


def refuse(label: str, scenario: Scenario, world: World, index: int, error: Refused) -> World:
    """A final failure is an answer, unless its run stood for one in doubt: then it is only told."""
    (response,) = error.args
    if not world.actors[index].reran:
        return acknowledge(label, scenario, world, index, response)
    if world.answer(response) is not None:
        raise Violation(label, f"the failure {response!r} settles the run before it")
    return world


def check_not_kept(label: str, world: World, index: int, response: str) -> None:
    """What is not to be kept is for its own caller, and its run leaves nothing behind."""
    run, entry = world.run_of(index), view(world.data)
    if run is None or run.end != "keeps nothing" or run.response != response:
        raise Violation(label, "a request got an answer of another's run that is not kept")
    claim = None if entry is None else entry.claim
    if claim is not None and claim.token == world.actors[index].token:
        raise Violation(label, "an answer that is not kept leaves its claim")


def check_looked(
    label: str, world: World, response: str, looked: tuple[bytes | None, int] | None
) -> None:
    """Nobody is answered from a record that has expired."""
    if looked is None:
        return
    found, now = looked
    entry = view(found)
    if entry is not None and entry.response == response and now >= entry.expires_at:
        raise Violation(label, "an answer was given from an expired record")


def check_kept(label: str, world: World) -> None:
    """Nothing that was acknowledged is lost while it lives."""
    for response in world.acknowledged:
        stored = world.answer(response)
        if world.furthest < stored.expires_at:
            entry = view(world.data)
            if entry is None or entry.response != response:
                raise Violation(label, f"the acknowledged answer {response!r} is lost")


# Runs of the handler.


def check_run(label: str, scenario: Scenario, world: World, run: Run) -> None:
    """The handler runs once, unless the policy allows more; never twice while its owner lives."""
    for other in world.runs:
        if any(
            index >= other.born and _over(scenario, stored) <= world.furthest
            for index, stored in enumerate(world.answers)
        ):
            continue  # of an earlier lifetime
        if run.token in world.lapsed or other.token in world.lapsed:
            continue  # a living owner elsewhere is past its lease, and the policy is to rerun
        _check_pair(label, scenario, world, run, other)


def _check_pair(label: str, scenario: Scenario, world: World, run: Run, other: Run) -> None:
    mine, theirs = scenario.callers[run.caller], scenario.callers[other.caller]
    alive, answered = world.is_alive(other), world.answer(other.response) is not None
    if scenario.lease is None and mine.kind == "execute":
        # Without a claim, a process is what one run at a time is promised in.
        if alive and theirs.process == mine.process and theirs.kind != "joined":
            raise Violation(label, "the handler runs twice at a time in one process")
        if world.actors[run.caller].saw == "answer":
            raise Violation(label, "the handler runs although its caller saw an answer")
        return
    if scenario.lease is None and theirs.kind == "execute" and not answered:
        return  # a run without a claim, which loses against this transaction
    if other.end != "returns" and not answered:
        # It had no effect, and holds others off while it lives and its claim does.
        if theirs.kind in ("transact", "joined") or other.token in world.barred or not alive:
            return
        if world.actors[other.caller].withdrew:
            return
    who = f"{other.response!r}"
    if theirs.params != mine.params:
        raise Violation(label, f"the handler runs for other params than the run of {who} had")
    if alive:
        raise Violation(label, f"the handler runs again while the owner of {who} lives")
    if answered:
        raise Violation(label, f"the handler runs again although {who} is the answer")
    if scenario.on_in_doubt is not InDoubtPolicy.RERUN:
        raise Violation(label, "the handler runs again, and the policy does not allow it")


def note_put(
    label: str, scenario: Scenario, world: World, index: int, value: bytes | None
) -> World:
    """Keep in mind what a put that takes place means for the invariants."""
    new, old = view(value), view(world.data)
    if new is not None and new.response is not None:
        if world.answer(new.response) is not None:
            raise Violation(label, f"the answer {new.response!r} is stored a second time")
        _check_stored(label, scenario, world, index, new)
        stored = Stored(new.response, new.expires_at, world.furthest)
        world = world._replace(answers=(*world.answers, stored))
    claim = None if old is None else old.claim
    actor = world.actors[index]
    if scenario.callers[index].kind in ("forget", "forget seen"):
        if claim is not None:
            raise Violation(label, "to forget an answer removes a claim")
        if actor.seen is not None and actor.seen != world.data:
            raise Violation(label, "another record than the one that was seen is forgotten")
        return world._replace(answers=tuple(_forgotten(each, world) for each in world.answers))
    if claim is None:
        return world
    if claim.token == actor.token:
        withdrew = new is None or new.claim is None or new.claim.token != actor.token
        return world.with_actor(index, actor._replace(withdrew=withdrew))
    check_living(label, scenario, world, claim)
    if new is not None and new.claim is not None and new.claim.token == actor.token:
        reran = scenario.on_in_doubt is InDoubtPolicy.RERUN
        world = world.with_actor(index, actor._replace(reran=reran))
    elsewhere = place_of(claim) != scenario.places[scenario.callers[index].process]
    if (
        elsewhere
        and scenario.on_in_doubt is InDoubtPolicy.RERUN
        and claim.lease_expires_at <= _told(scenario, world, index)
        and world.holder(claim.token) is not None
    ):
        world = world._replace(lapsed=world.lapsed | {claim.token})
    return world


def _check_stored(label: str, scenario: Scenario, world: World, index: int, new: View) -> None:
    """What is stored is what its run ended with; a failure speaks for no other run."""
    run = next((run for run in reversed(world.runs) if run.response == new.response), None)
    if run is None:
        raise Violation(label, f"the answer {new.response!r} is stored, and no run gave it")
    if run.end == "keeps nothing":
        raise Violation(label, "an answer that is not to be kept is stored")
    if (run.end == "fails") is not (new.state is State.FAILED):
        raise Violation(label, f"{new.response!r} is stored as a {new.state.name}")
    if new.state is not State.FAILED:
        return
    actor, old = world.actors[index], view(world.data)
    claim = None if old is None else old.claim
    if actor.reran:
        raise Violation(label, f"the failure {new.response!r} settles the run before it")
    if claim is not None and claim.token != actor.token and claim.token not in world.barred:
        raise Violation(label, f"the failure {new.response!r} is stored over another's claim")


def check_living(label: str, scenario: Scenario, world: World, claim: Claim | None) -> None:
    """No owner that lives, and renews in time, is taken for gone while the clocks are near."""
    if not scenario.finds_no_living or claim is None or claim.ended_at is not None:
        return
    if world.holder(claim.token) is not None:
        raise Violation(label, "a living owner that renews in time is found in doubt")


def _told(scenario: Scenario, world: World, index: int) -> int:
    """Return the latest time that this caller may have been told."""
    return world.told[scenario.places[scenario.callers[index].process]]


def _forgotten(stored: Stored, world: World) -> Stored:
    until = min(stored.expires_at, world.now)
    return stored._replace(expires_at=until, forgotten=True)


# The caller's own transactions.


def check_held(label: str, node: Node) -> None:
    """While a transaction holds others off, its run waits for nobody, and asks for nobody."""
    step = node.step
    if not (step is READ or step is UNDO or isinstance(step, CheckAndPut | Call)):
        raise Violation(label, f"a {type(step).__name__} in a transaction that holds others off")


def check_joined(label: str, world: World, index: int, node: Node, ran: bool) -> None:
    """What is committed is no placeholder, and nothing of a handler that failed."""
    entry = view(world.data)
    claim = None if entry is None else entry.claim
    if claim is not None and claim.token == world.actors[index].token:
        raise Violation(label, "a placeholder is committed")
    if ran and isinstance(node.result, Raised):
        raise Violation(label, "a failure is committed with what its handler has written")


# Ends.


def check_error(
    label: str, scenario: Scenario, world: World, index: int, error: BaseException
) -> None:
    """An error is one that this can end with, and says the truth about what ran."""
    actor = world.actors[index]
    due = (KVReplayError, Declined, Refused, Interrupted)
    if scenario.lease is None:  # where there is no claim that could tell of doubt
        due = (*due, TimeoutError, ExceptionGroup)
    if not isinstance(error, due):
        raise Violation(label, f"a request ended with {error!r}")
    if actor.ran and isinstance(error, ParamsMismatchError | ExpiredError | InFlightError):
        raise Violation(label, f"{type(error).__name__} says that nothing ran, and it did")
    if isinstance(error, ClaimLostError) and not actor.ran:
        raise Violation(label, "ClaimLostError says that the handler ran, and it did not")
    if isinstance(error, InFlightError) and actor.saw == "doubt":
        raise Violation(label, "a request is told to wait for an owner that is gone")
    if isinstance(error, InDoubtError) and not actor.began and (entry := view(world.data)):
        check_living(label, scenario, world, entry.claim)
    if (
        isinstance(error, InDoubtError)
        and not actor.began
        and actor.saw != "doubt"
        and not in_doubt(
            scenario, world, scenario.callers[index].process, _told(scenario, world, index)
        )
    ):
        raise Violation(label, "a request found a key in doubt that was not")


def check_left(label: str, world: World, index: int) -> None:
    """A run that ended without an answer leaves no claim, or one that says that the run has ended.

    If it never began, it leaves none.
    """
    actor, entry = world.actors[index], view(world.data)
    claim = None if entry is None else entry.claim
    if claim is None or claim.token != actor.token or actor.excused:
        return
    if not actor.began:
        raise Violation(label, "a run that never began leaves its claim")
    if claim.ended_at is None:
        raise Violation(label, "a run that has ended does not say so in its claim")


def check_lookup(label: str, world: World, index: int, result: object) -> None:
    if result is None and world.actors[index].saw == "doubt":
        raise Violation(label, "a lookup knew nothing of a key in doubt")


def check_renewal(label: str, scenario: Scenario, node: Node) -> None:
    if node.error is not None and not isinstance(node.error, KVReplayError):
        raise Violation(label, f"a renewal ended with {node.error!r}")


def check_wait(label: str, scenario: Scenario, actor: Actor) -> None:
    if actor.waited > scenario.wait:
        raise Violation(label, "a request waits longer than its wait_timeout")


def check_length(label: str, node: Node) -> None:
    if len(node) > LONGEST:
        raise Violation(label, "a request does not come to an end")


def _over(scenario: Scenario, stored: Stored) -> int:
    """Return when the lifetime of an answer is over, its tombstone's included if it binds."""
    if stored.forgotten or scenario.on_expired is ExpiredPolicy.RERUN:
        return stored.expires_at
    return stored.expires_at + scenario.tombstone * TICK
