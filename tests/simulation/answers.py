"""What the world answers to a caller's step, and what the answer leads to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from kvreplay import NOT_APPLIED, Applied, InFlightError, Unknown
from kvreplay._protocol.record import TOKEN_SIZE
from kvreplay._protocol.steps import (
    BEGIN,
    READ,
    Call,
    CheckAndPut,
    InDoubtPolicy,
    Log,
    Probe,
    Raised,
    Reconcile,
    Settled,
    Transact,
    Wait,
)
from simulation import invariants
from simulation.flows import (
    ERRORS,
    Answer,
    Committed,
    Ended,
    Make,
    Node,
    Protocol,
    Refused,
    Sent,
    Thrown,
    Undone,
)
from simulation.scenario import TICK, Scenario, name_of
from simulation.world import (
    Actor,
    Run,
    RunEnd,
    World,
    clock_at,
    describe,
    in_doubt,
    look_up,
    owner_of,
    view,
)

ANYTHING: Any = object()
"""As ``expected`` of a planted bug's put: whatever is there."""

REQUESTS = ("execute", "transact")
"""Those that share a run in their process. One in its caller's own transaction does not."""

IN_TRANSACTIONS = ("transact", "joined")

RUNS: tuple[RunEnd, ...] = ("returns", "fails", "keeps nothing")
"""The ends of a handler that others must reckon with while it runs."""

UNKNOWN_ENDS = {
    "unsure": ("loses contact", "IndeterminateError"),
    "times out": ("times out", "TimeoutError"),
    "loses a leg": ("loses contact on one of its legs", "ExceptionGroup"),
}
"""How a handler tells that it does not know its end: what it does, and what it raises."""

TELLS_AN_END = ("released", "in_doubt", "doubt_begun")
"""The events of the puts that tell how a run without an answer has ended."""

Move = tuple[str, World]


class Answers:
    """The answers of one scenario under one protocol, and a tally of how requests ended."""

    def __init__(self, scenario: Scenario, protocol: Protocol) -> None:
        self.scenario = scenario
        self.protocol = protocol
        self.ends: Counter[str] = Counter()
        self._callers = scenario.callers
        self._roots: dict[Any, Node] = {}

    def _who(self, index: int, actor: Actor) -> str:
        return f"{name_of(index, actor.attempt)} (P{self._callers[index].process})"

    def _root(self, index: int, what: Any, make: Make) -> Node:
        node = self._roots.get((index, what))
        if node is None:
            node = self._roots[index, what] = Node(make)
        return node

    # The store.

    def _read(self, world: World, index: int, actor: Actor) -> Iterator[Move]:
        label = f"{self._who(index, actor)} reads {describe(world.data)}"
        asked = self._note(world, index, READ)
        yield from self._answered(label, asked, index, world.data)
        yield from self._fails(label, world, index, "StoreUnavailableError")

    def _put(self, world: World, index: int, actor: Actor, step: CheckAndPut) -> Iterator[Move]:
        label = f"{self._who(index, actor)} {text_of(step)}"
        found = world.data
        if step.expected is not ANYTHING and found != step.expected:
            lost = self._note(world, index, step)
            yield from self._answered(f"{label}, but finds {describe(found)}", lost, index, found)
        else:
            put = self._stored(label, world, index, step)
            yield from self._answered(label, put, index, found)
            yield from self._fails(label, put, index, "OutcomeUnknownError", "after it happened")
        yield from self._fails(label, world, index, "OutcomeUnknownError", "before it happened")
        yield from self._fails(label, world, index, "StoreUnavailableError")

    def _stored(self, label: str, world: World, index: int, step: CheckAndPut) -> World:
        """Return the world after a put that took place."""
        asked = self._note(world, index, step)
        put = invariants.note_put(label, self.scenario, asked, index, step.value)
        put = put._replace(data=step.value, due=step.expires_at if step.value else None)
        invariants.check_kept(label, put)
        return put

    def _note(self, world: World, index: int, step: Any) -> World:
        """Return the world in which the store has answered a step: a comparison may note it."""
        return world

    def _answered(
        self, label: str, world: World, index: int, found: bytes | None
    ) -> Iterator[Move]:
        actor = world.actors[index]._replace(saw=self._sees(world, index, found))
        world = world.with_actor(index, actor)
        if self.scenario.slow_clocks and world.left.ticks:
            slow = actor._replace(phase="slow", slow=(found, world.now))
            yield f"{label}, and is slow", world.with_actor(index, slow)
        now = self._now(world, index)
        yield self._tell(label, world, index, Sent((found, now)), (found, now))

    def _now(self, world: World, index: int) -> int:
        """What the clock tells at a caller's place."""
        return clock_at(self.scenario, world, self._callers[index].process)

    def _sees(self, world: World, index: int, found: bytes | None) -> str:
        entry = view(found)
        if entry is None:
            return ""
        if entry.claim is None:
            lives = entry.response is not None and self._now(world, index) < entry.expires_at
            return "answer" if lives else ""
        now = world._replace(data=found)
        return "doubt" if in_doubt(self.scenario, now, self._callers[index].process) else ""

    def _fails(
        self, label: str, world: World, index: int, error: str, when: str = ""
    ) -> Iterator[Move]:
        if world.left.faults:
            label = f"{label} -- {error} {when}".rstrip()
            world = world._replace(left=world.left._replace(faults=world.left.faults - 1))
            actor = world.actors[index]
            step = actor.node.step
            if (actor.began and step is READ) or getattr(step, "event", None) in TELLS_AN_END:
                world = world.with_actor(index, actor._replace(excused=True))
            yield self._tell(label, world, index, Thrown(error))

    def _probe(self, world: World, index: int, actor: Actor, step: Probe) -> Iterator[Move]:
        runs = look_up(self.scenario, world, self._callers[index].process, step.claim)
        what = {True: "lives", False: "is gone", None: "cannot be looked up"}[runs]
        label = f"{self._who(index, actor)} looks the owner up: it {what}"
        yield self._tell(label, world, index, Sent(runs))

    def _wait(self, world: World, index: int, actor: Actor, step: Wait) -> Iterator[Move]:
        label = f"{self._who(index, actor)} waits"
        actor = actor._replace(waited=min(actor.waited + step.delay, self.scenario.wait))
        world = self._bind(world.with_actor(index, actor), index)
        yield self._tell(label, world, index, Sent(True))

    def _log(self, world: World, index: int, actor: Actor, step: Log) -> Iterator[Move]:
        label = f"{self._who(index, actor)} logs what its caller is not told of"
        yield self._tell(label, world, index, Sent(None))

    def _reconcile(self, world: World, index: int, actor: Actor, step: Reconcile) -> Iterator[Move]:
        """Ask the ledger, which from then on refuses an effect that it said it had not."""
        effect = self._effect(world)
        if world.left.unknowns:
            left = world.left._replace(unknowns=world.left.unknowns - 1)
            label = f"{self._who(index, actor)} asks the ledger, which does not know yet"
            asked = self._bind(world._replace(left=left), index)
            yield self._tell(label, asked, index, Sent((Unknown(), self._now(world, index))))
        verdict = NOT_APPLIED if effect is None else Applied(effect)
        label = f"{self._who(index, actor)} asks the ledger, which knows of {effect or 'nothing'}"
        if effect is None:
            world = world._replace(barred=world.barred | {step.record.claim.token})
        invariants.check_living(label, self.scenario, world, step.record.claim)
        told = Sent((verdict, self._now(world, index)))
        yield self._tell(label, self._bind(world, index), index, told)

    def _effect(self, world: World) -> str | None:
        """Return the response of the effect that no stored answer tells of yet."""
        for run in reversed(world.runs):
            if run.end == "returns" and world.answer(run.response) is None:
                return run.response
        return None

    def _call(self, world: World, index: int, actor: Actor, step: Call) -> Iterator[Move]:
        who = self._who(index, actor)
        world = self._bind(world, index)
        actor = world.actors[index]
        held = None if step.held is None else actor.node.held
        ends = self.scenario.ends
        if actor.token in world.barred:
            yield self._ended(f"{who}: the ledger refuses", world, index, held, "Declined")
            return
        if "declines" in ends:
            yield self._ended(f"{who}: the handler declines", world, index, held, "Declined")
        if "denies" in ends:
            yield self._ended(f"{who}: the handler denies", world, index, held, "NotAppliedError")
        for end, (what, error) in UNKNOWN_ENDS.items():
            if end in ends:
                label = f"{who}: the handler {what}, and nothing happened"
                yield self._ended(label, world, index, held, error)
        if "never begins" in ends:
            yield self._tell(f"{who} cannot begin", world, index, Thrown("Interrupted"))
        if "interrupted" in ends:
            label = f"{who} is interrupted, and nothing happened"
            began = world.with_actor(index, actor._replace(began=True))
            yield self._tell(label, began, index, Thrown("Interrupted", begun=True))
        is_seen = not set(ends) <= set(RUNS) or world.left.ticks or (held and actor.renewals)
        for end in RUNS:
            if end not in ends:
                continue
            label = f"{who} runs the handler" + ("" if end == "returns" else f", which {end} later")
            ran = self._ran(label, world, index, end)
            if is_seen:
                due = self._due(world, "interval")
                running = ran.actors[index]._replace(phase="running", held=held, due=due)
                yield label, ran.with_actor(index, running)
            else:
                # Nobody can see whether it has ended yet, and a crash has the same effect.
                yield self._ends(f"{who} runs the handler, which {end}", ran, index, held, end)

    def _ran(self, label: str, world: World, index: int, end: RunEnd) -> World:
        """Return the world with a run of the handler; if it returns, the ledger has its effect."""
        actor = world.actors[index]
        token = actor.token if isinstance(actor.node.step, Call) else None
        run = Run(index, actor.attempt, token, len(world.answers), end)
        invariants.check_run(label, self.scenario, world, run)
        world = world._replace(runs=(*world.runs, run))
        if end == "fails" and self._callers[index].kind in IN_TRANSACTIONS:
            return world  # it is undone
        return world.with_actor(index, actor._replace(began=True, ran=True))

    def _running(self, world: World, index: int, actor: Actor) -> Iterator[Move]:
        who = self._who(index, actor)
        if actor.renewal is not None:
            yield from self._renewing(world, index, actor, actor.renewal)
            return  # a run goes on when no renewal is under way
        if actor.renewals and actor.held is not None and self._is_due(world, actor):
            lease, held = self.scenario.lease * TICK, actor.held
            root = self._root(
                index, (actor.attempt, held), lambda: self.protocol.renewal(held, lease)
            )
            renewing = actor._replace(
                renewal=root, renewals=actor.renewals - 1, due=self._due(world, "takes")
            )
            yield from self._renewing(world.with_actor(index, renewing), index, renewing, root)
        run = world.run_of(index)
        assert run is not None  # it is under way
        if run.end != "returns":
            yield self._ends(f"{who}: the handler {run.end}", world, index, actor.held, run.end)
            return
        ends = self.scenario.ends
        for end, (what, error) in UNKNOWN_ENDS.items():
            if end in ends:
                label = f"{who}: the handler {what}, and it happened"
                yield self._ended(label, world, index, actor.held, error)
        if "interrupted" in ends:
            label = f"{who} is interrupted, and it happened"
            due = self._due(world, "takes")
            asking = world.with_actor(index, actor._replace(phase="asking", held=None, due=due))
            yield self._tell(label, asking, index, Thrown("Interrupted", begun=True))
        yield self._ends(f"{who}: the handler returns", world, index, actor.held, "returns")

    def _ends(self, label: str, world: World, index: int, held: bytes | None, end: RunEnd) -> Move:
        """End a run that answers something, or fails with it."""
        return self._call_over(label, world, index, self._end_of(world, index, held, end))

    def _end_of(self, world: World, index: int, held: bytes | None, end: RunEnd) -> Ended:
        response = name_of(index, world.actors[index].attempt)
        error = "Refused" if end == "fails" else None
        return Ended(response, error, self._now(world, index), held, end != "keeps nothing")

    def _ended(self, label: str, world: World, index: int, held: bytes | None, error: str) -> Move:
        ended = Ended(None, error, self._now(world, index), held)
        return self._call_over(label, world, index, ended)

    def _call_over(self, label: str, world: World, index: int, ended: Ended) -> Move:
        due = self._due(world, "takes")
        actor = world.actors[index]._replace(phase="asking", held=None, began=True, due=due)
        return self._tell(label, world.with_actor(index, actor), index, ended)

    def _due(self, world: World, what: Literal["interval", "takes"]) -> int | None:
        """Return until when something must be done now, if renewals are on time."""
        on_time = self.scenario.on_time
        return None if on_time is None else world.now + getattr(on_time, what) * TICK

    def _is_due(self, world: World, actor: Actor) -> bool:
        return actor.due is None or world.now >= actor.due

    def _renewing(self, world: World, index: int, actor: Actor, node: Node) -> Iterator[Move]:
        """The renewer's next step, while the handler runs."""
        who = f"the renewer of {self._who(index, actor)}"
        step = node.step
        if step is READ:
            label = f"{who} reads {describe(world.data)}"
            asked = self._note(world, index, READ)
            told = Sent((world.data, self._now(world, index)))
            yield self._renewed(label, asked, index, node, told)
            if world.left.faults:
                failed = world._replace(left=world.left._replace(faults=world.left.faults - 1))
                error = "StoreUnavailableError"
                yield self._renewed(f"{label} -- {error}", failed, index, node, Thrown(error))
            return
        assert isinstance(step, CheckAndPut)
        label = f"{who} {text_of(step)}"
        found = world.data
        if step.expected is ANYTHING or found == step.expected:
            applied = self._stored(label, world, index, step)
        else:
            applied = self._note(world, index, step)
            label = f"{label}, but finds {describe(found)}"
        told = Sent((found, self._now(world, index)))
        yield self._renewed(label, applied, index, node, told)
        if world.left.faults:
            left = world.left._replace(faults=world.left.faults - 1)
            for error, then, when in (
                ("OutcomeUnknownError", applied, "after it happened"),
                ("OutcomeUnknownError", world, "before it happened"),
                ("StoreUnavailableError", world, ""),
            ):
                failed = f"{label} -- {error} {when}".rstrip()
                yield self._renewed(failed, then._replace(left=left), index, node, Thrown(error))

    def _renewed(self, label: str, world: World, index: int, node: Node, answer: Answer) -> Move:
        actor = world.actors[index]
        after = node.after(answer)
        if not after.over:
            return label, world.with_actor(index, actor._replace(renewal=after))
        invariants.check_renewal(label, self.scenario, after)
        kept = after.result is not False  # a failure is tried again
        actor = actor._replace(
            renewal=None,
            held=after.held,
            renewals=actor.renewals if kept else 0,
            due=self._due(world, "interval") if kept else None,
        )
        return label, world.with_actor(index, actor)

    def _transact(self, world: World, index: int, actor: Actor, step: Transact) -> Iterator[Move]:
        """Run the handler and store its answer in one step, or undo both."""
        who = self._who(index, actor)
        world = self._bind(world, index)
        saw = self._sees(world, index, world.data)
        reran = saw == "doubt" and self.scenario.on_in_doubt is InDoubtPolicy.RERUN
        actor = world.actors[index]._replace(saw=saw, reran=reran)
        world = world.with_actor(index, actor)
        for end in (*RUNS, "declines"):
            if end not in self.scenario.ends:
                continue
            label = f"{who} runs a transaction, whose handler {end}"
            inside, answer = self._inside(label, world, index, end)
            if isinstance(answer, Thrown | Undone) or inside.runs is world.runs:
                then = inside if isinstance(answer, Undone) else world
                yield self._tell(label, then, index, answer)  # nothing to commit
                continue
            yield self._tell(label, inside, index, answer)
            unknown = "OutcomeUnknownError"
            yield from self._fails(label, inside, index, unknown, "after it happened")
            undone = self._undone(world, inside)
            yield from self._fails(label, undone, index, unknown, "before it happened")
            yield from self._fails(label, undone, index, "StoreUnavailableError")

    def _undone(self, world: World, inside: World) -> World:
        """Return the world after a transaction that was not committed."""
        return world

    def _inside(self, label: str, world: World, index: int, end: str) -> tuple[World, Answer]:
        flow = world.actors[index].node.again().flow
        before = world.data
        ended: Ended | None = None
        try:
            inner = next(flow)
            while True:
                found = world.data
                if inner is READ:
                    world = self._note(world, index, READ)
                    inner = flow.send((found, self._now(world, index)))
                elif isinstance(inner, Call):
                    if end == "declines":
                        ended = Ended(None, "Declined", self._now(world, index), None)
                    else:
                        ended = self._end_of(world, index, None, end)
                        world = self._ran(label, world, index, end)
                    inner = ended.give(flow, inner)
                else:
                    assert isinstance(inner, CheckAndPut)
                    if inner.expected is ANYTHING or found == inner.expected:
                        world = self._stored(label, world, index, inner)
                    else:
                        world = self._note(world, index, inner)
                    inner = flow.send((found, self._now(world, index)))
        except StopIteration as returned:
            return world, Committed(returned.value, end != "keeps nothing")
        except Exception as error:
            if type(error).__name__ not in ERRORS:
                raise
            if ended is None:
                return world, Thrown(type(error).__name__)
            return world, Undone(before, ended)

    _ANSWERS: ClassVar[dict[type, Any]] = {
        CheckAndPut: _put,
        Probe: _probe,
        Wait: _wait,
        Log: _log,
        Reconcile: _reconcile,
        Call: _call,
        Transact: _transact,
    }

    # What an answer leads to.

    def _tell(
        self,
        label: str,
        world: World,
        index: int,
        answer: Answer,
        looked: tuple[bytes | None, int] | None = None,
    ) -> Move:
        """Send a flow its answer, and see whether it goes on."""
        actor = world.actors[index]
        node = actor.node.after(answer)
        if not actor.began and not isinstance(node.step, Call) and _has_time(answer):
            actor = actor._replace(due=self._due(world, "takes"))  # a lease is reckoned from here
        while node.step is BEGIN:  # nobody can see it before the claim is stored
            caller = self._callers[index]
            token = f"{name_of(index, actor.attempt)}.{node.begun + 1}".encode().ljust(
                TOKEN_SIZE, b"\0"
            )
            owner = owner_of(self.scenario, caller.process, world.incarnations[caller.process])
            actor = actor._replace(token=token)
            node = node.after(Sent((token, owner)))
        if isinstance(node.step, Wait) and actor.waited >= self.scenario.wait:
            invariants.check_wait(label, self.scenario, actor)
            world = self._bind(world.with_actor(index, actor), index)
            actor = world.actors[index]._replace(waited=self.scenario.wait + 1)
            node = node.after(Sent(False))
        invariants.check_length(label, node)
        if not node.over:
            return label, world.with_actor(index, actor._replace(node=node))
        if node.error is not None:
            end = type(node.error).__name__
            label = f"{label}; it ends with {end}"
            invariants.check_error(label, self.scenario, world, index, node.error)
            invariants.check_left(label, world, index)
            if isinstance(node.error, Refused):
                world = invariants.refuse(label, self.scenario, world, index, node.error)
        elif isinstance(node.result, Settled):
            answered = invariants.answer_of(label, node.result)
            label = f"{label}; it is answered {answered!r}"
            if node.result.expires_at is None:
                invariants.check_not_kept(label, world, index, answered)
                end = "answered, and nothing kept"
            else:
                invariants.check_looked(label, world, answered, looked)
                world = invariants.acknowledge(label, self.scenario, world, index, answered)
                end = "replayed" if node.result.replayed else "answered"
                end += " a failure" * (node.result.failure is not None)
        elif isinstance(node.result, Raised):
            end = type(node.result.error).__name__
            label = f"{label}; it ends with {end}"
            world = invariants.refuse(label, self.scenario, world, index, node.result.error)
        else:
            end = str(node.result)
            label = f"{label}; it ends with {end}"
            if self._callers[index].kind == "lookup":
                invariants.check_lookup(label, world, index, node.result)
        return label, self._land(label, self._end(world, index, end), index, node)

    def _end(self, world: World, index: int, end: str) -> World:
        self.ends[f"{self._callers[index].kind}: {end}"] += 1
        return world.with_actor(index, Actor(phase="ended", attempt=0))

    def _land(self, label: str, world: World, index: int, node: Node) -> World:
        """Share a leader's end with its followers, or let them start over."""
        leader = self._callers[index]
        if leader.kind not in REQUESTS:
            return world
        for other, actor in enumerate(world.actors):
            caller = self._callers[other]
            if actor.phase != "following" or caller.process != leader.process:
                continue
            starts_over = caller.params != leader.params or (
                # The leader's time is over, and not the follower's.
                isinstance(node.error, InFlightError) and actor.waited < self.scenario.wait
            )
            if starts_over or not isinstance(node.error, Exception | None):
                world = world.with_actor(other, actor._replace(phase="new"))
            elif node.error is not None:
                if isinstance(node.error, Refused) and world.answer(node.error.args[0]):
                    answered = node.error.args[0]
                    world = invariants.acknowledge(label, self.scenario, world, other, answered)
                world = self._end(world, other, f"shares {type(node.error).__name__}")
            elif node.result.expires_at is None:
                world = self._end(world, other, "shares what is not kept")
            else:
                answered = invariants.answer_of(label, node.result)
                world = invariants.acknowledge(label, self.scenario, world, other, answered)
                world = self._end(world, other, "shares the answer")
        return world

    def _bind(self, world: World, index: int) -> World:
        """Note that the key belongs to a leader's params: others in its process are stale."""
        actor = world.actors[index]
        leader = self._callers[index]
        if actor.bound or leader.kind not in REQUESTS:
            return world
        world = world.with_actor(index, actor._replace(bound=True))
        for other, following in enumerate(world.actors):
            caller = self._callers[other]
            if (
                following.phase == "following"
                and caller.process == leader.process
                and caller.params != leader.params
            ):
                world = self._end(world, other, "refused by its own process")
        return world


def _has_time(answer: Answer) -> bool:
    return isinstance(answer, Sent) and isinstance(answer.value, tuple)


def text_of(step: CheckAndPut) -> str:
    expected = "whatever is there" if step.expected is ANYTHING else describe(step.expected)
    if step.value is None:
        return f"removes {expected}"
    return f"puts {describe(step.value)} in place of {expected}"
