"""A request in its caller's own transaction.

Until it changes the entry it reads and waits as any other. That change holds off everybody else's,
so all from there to the end of the transaction is one step of the store. Then the caller commits,
or rolls back, whatever the request was answered; or it does not learn what became of its commit,
and asks again. A crash before the commit leaves what a crash before that step leaves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvreplay._protocol.steps import READ, UNDO, Call, CheckAndPut
from simulation import invariants
from simulation.answers import ANYTHING, RUNS, Answers, Move, text_of
from simulation.flows import Answer, Ended, Sent, Thrown
from simulation.world import Actor, World, describe

ENDS = (*RUNS, "declines", "commits")
"""The ends of a handler in such a transaction. It commits, which only its caller may."""


class Joined(Answers):
    """The answers to a flow whose changes are a part of its caller's transaction."""

    def _join(self, world: World, index: int, actor: Actor, step: Any) -> Iterator[Move]:
        """Go on from a change, or from a call that a wrong flow makes without one."""
        who = self._who(index, actor)
        if isinstance(step, CheckAndPut):
            label = f"{who}, joined, {text_of(step)}"
            yield from self._fails(label, world, index, "StoreUnavailableError")
            if step.expected is not ANYTHING and world.data != step.expected:
                label = f"{label}, but finds {describe(world.data)}"
                lost = self._note(world, index, step)
                yield from self._answered(label, lost, index, world.data)
                return
        for end in ENDS:
            if end in self.scenario.ends:
                label = f"{who} goes on in its caller's transaction"
                inside, answer, ran = self._within(label, world, index, end)
                if ran:
                    label = f"{who} runs in its caller's transaction, whose handler {end}"
                yield from self._over(label, world, inside, index, answer, ran)
                if not ran:
                    return

    def _over(
        self, label: str, world: World, inside: World, index: int, answer: Answer, ran: bool
    ) -> Iterator[Move]:
        """End a transaction. ``inside``: the world in it, before the ``answer`` to its last step."""
        node, actor = inside.actors[index].node, world.actors[index]
        after = node.after(answer)
        actor = actor._replace(node=node, reran=inside.actors[index].reran)
        undone = self._undone(world, inside).with_actor(index, actor)
        if node.step is UNDO:
            failed = undone._replace(runs=inside.runs)
            yield self._tell(f"{label}, and is undone", failed, index, answer)
        elif isinstance(answer, Thrown):
            excused = inside.actors[index]._replace(excused=True)  # no store can tell its end
            yield self._tell(label, inside.with_actor(index, excused), index, answer)
        elif after.error is not None:
            yield self._tell(f"{label}, and is undone", undone, index, answer)
        else:
            invariants.check_joined(label, inside, index, after, ran)
            yield self._tell(f"{label}, and is committed", inside, index, answer)
            yield f"{label}, and is rolled back", self._end(undone, index, "rolled back")
            yield from self._fails(label, undone, index, "StoreUnavailableError")
            yield from self._commit_fails(label, inside, index, "after")
            yield from self._commit_fails(label, undone, index, "before")

    def _commit_fails(self, label: str, world: World, index: int, when: str) -> Iterator[Move]:
        """The caller does not learn whether it has committed: it makes its request again."""
        if world.left.faults:
            left = world.left._replace(faults=world.left.faults - 1)
            attempt = world.actors[index].attempt + 1
            again = Actor(attempt=attempt, renewals=self.scenario.renewals)
            self.ends["joined: asks again"] += 1
            label = f"{label} -- the outcome of its commit is unknown, {when} it happened"
            yield label, world._replace(left=left).with_actor(index, again)

    def _within(self, label: str, world: World, index: int, end: str) -> tuple[World, Answer, bool]:
        """Answer all steps up to the last one of the transaction.

        Returns the world before that, its answer, and whether the handler has run.
        """
        ran = False
        while True:
            node = world.actors[index].node
            ran = ran or isinstance(node.step, Call)
            world, answer = self._answer_within(label, world, index, end)
            after = node.after(answer)
            if node.step is UNDO or after.over:
                return world, answer, ran
            invariants.check_held(label, after)
            world = world.with_actor(index, world.actors[index]._replace(node=after))

    def _answer_within(
        self, label: str, world: World, index: int, end: str
    ) -> tuple[World, Answer]:
        actor, found, now = world.actors[index], world.data, self._now(world, index)
        step = actor.node.step
        if step is UNDO:
            return world, Sent(None)
        if isinstance(step, Call):
            if end == "declines":
                return world, Ended(None, "Declined", now, None)
            run_end = "returns" if end == "commits" else end
            ended = self._end_of(world, index, None, run_end)
            return self._ran(label, world, index, run_end), ended
        if step is READ:
            return self._note(world, index, step), Sent((found, now))
        if end == "commits" and actor.ran:
            return world, Thrown("ClaimLostError")
        if step.expected is ANYTHING or found == step.expected:
            world = self._stored(label, world, index, step)
        else:
            world = self._note(world, index, step)
        return world, Sent((found, now))
