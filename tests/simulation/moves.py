"""What can happen next in a world: a caller's next step, a crash, the clock, a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from kvreplay._protocol.record import decode, encode_response
from kvreplay._protocol.steps import READ, Call, CheckAndPut, Probe
from simulation import invariants
from simulation.afterwards import check_latecomers
from simulation.answers import REQUESTS, Move
from simulation.flows import REAL, Protocol, Sent, without_held
from simulation.invariants import Violation
from simulation.joined import Joined
from simulation.scenario import KEY, TICK, Caller, Scenario, name_of
from simulation.world import FLYING, Actor, World, clock, describe, in_doubt, owner_of, view

OPERATORS = ("operator", "forget", "forget seen")


class Moves(Joined):
    """The moves of one scenario under one protocol."""

    def __init__(self, scenario: Scenario, protocol: Protocol = REAL) -> None:
        super().__init__(scenario, protocol)
        self._latecomers: set[tuple[bytes | None, int, str | None]] = set()
        self._peers = [self._peers_of(caller) for caller in self._callers]

    def of(self, world: World) -> Iterator[Move]:
        """Yield every move with what it leads to; raise a Violation where one is seen."""
        stuck = True
        for index, actor in enumerate(world.actors):
            alike = self._alike(world, index)
            if alike and alike[0] != index:
                continue  # the same, but for names
            for move in self._moves_of(world, index, actor):
                stuck = False
                for _ in alike or (index,):  # all are schedules, of which one is walked
                    yield move
        waiting = [i for i, actor in enumerate(world.actors) if not self._is_done(i, actor)]
        if not waiting:
            self._check_latecomers(world)
            return
        if stuck and all(world.actors[index].phase != "slow" for index in waiting):
            raise Violation("(nobody can do anything any more)", "somebody waits for ever")
        yield from self._crashes(world)
        yield from self._time(world)

    def _alike(self, world: World, index: int) -> list[int]:
        """Return those, with this caller, who have left no trace and may change places with it."""
        fresh = Actor(renewals=self.scenario.renewals)
        return [
            other
            for other in self._peers[index]
            if world.actors[other] == fresh == world.actors[index]
            and self._around(world, other) == self._around(world, index)
        ]

    def _around(self, world: World, index: int) -> tuple[int, ...]:
        process = self._callers[index].process
        place = self.scenario.places[process]
        return world.incarnations[process], world.ahead[place], world.told[place]

    def _peers_of(self, caller: Caller) -> list[int]:
        """Return whoever asks for the same, among the same neighbours."""
        callers = Counter(each.process for each in self._callers)
        processes = Counter(self.scenario.places[each] for each in callers)

        def asks(each: Caller) -> tuple[str, str, int | None, int | None]:
            """What for, and in which process and place, if there is anybody else there."""
            process, place = each.process, self.scenario.places[each.process]
            return (
                *(each.kind, each.params),
                process if callers[process] > 1 else None,
                place if processes[place] > 1 else None,
            )

        return [index for index, each in enumerate(self._callers) if asks(each) == asks(caller)]

    def _check_latecomers(self, world: World) -> None:
        seen = world.data, world.now, self._effect(world)
        if seen not in self._latecomers:
            self._latecomers.add(seen)
            check_latecomers("(after everything)", self.scenario, self.protocol, *seen)

    def _is_done(self, index: int, actor: Actor) -> bool:
        """An operator whom nobody needs is done too."""
        if actor.phase == "new":
            return self._callers[index].kind in OPERATORS
        return actor.phase == "ended"

    # What goes wrong, and time.

    def _crashes(self, world: World) -> Iterator[Move]:
        """Kill a process at whatever its callers are doing; they ask again after its restart."""
        if not world.left.crashes:
            return
        probed = self._probed(world)
        for process in sorted({caller.process for caller in self._callers}):
            mine = owner_of(self.scenario, process, world.incarnations[process])
            busy = [
                index
                for index, actor in enumerate(world.actors)
                if self._callers[index].process == process and actor.phase not in ("new", "ended")
            ]
            if not busy and mine not in probed:
                continue  # nothing would be different
            actors = list(world.actors)
            for index in busy:
                attempt = actors[index].attempt + 1
                actors[index] = Actor(attempt=attempt, renewals=self.scenario.renewals)
            incarnations = list(world.incarnations)
            incarnations[process] += 1
            yield (
                f"P{process} crashes and is restarted",
                world._replace(
                    actors=tuple(actors),
                    incarnations=tuple(incarnations),
                    left=world.left._replace(crashes=world.left.crashes - 1),
                ),
            )

    def _probed(self, world: World) -> set[str]:
        """Return the owners of whom somebody may still want to know whether they live."""
        claims = [entry.claim if (entry := view(world.data)) else None]
        for actor in world.actors:
            if actor.phase == "slow" and (entry := view(actor.slow[0])):
                claims.append(entry.claim)
            elif actor.phase == "asking" and isinstance(actor.node.step, Probe):
                claims.append(actor.node.step.claim)
        return {claim.owner for claim in claims if claim is not None}

    def _time(self, world: World) -> Iterator[Move]:
        if world.left.ticks and not any(self._hurries(world, actor) for actor in world.actors):
            left = world.left._replace(ticks=world.left.ticks - 1)
            now = world.now + TICK
            yield f"the clock moves to {clock(now)}", world._replace(left=left).at(now, world.ahead)
        if world.left.jumps:
            yield from self._jumps(world)
        if world.left.sweeps and world.due is not None and world.due <= world.fastest:
            label = f"a sweep removes {describe(world.data)}"
            left = world.left._replace(sweeps=world.left.sweeps - 1)
            swept = world._replace(data=None, due=None, left=left)
            invariants.check_kept(label, swept)
            yield label, swept

    def _jumps(self, world: World) -> Iterator[Move]:
        left = world.left._replace(jumps=world.left.jumps - 1)
        for place in sorted({self.scenario.places[each.process] for each in self._callers}):
            for ticks in self.scenario.jumps_to:
                ahead = list(world.ahead)
                ahead[place] = ticks * TICK
                if tuple(ahead) != world.ahead:
                    label = (
                        f"the clock of place {place} is set to {clock(world.now + ahead[place])}"
                    )
                    yield label, world._replace(left=left).at(world.now, tuple(ahead))

    def _hurries(self, world: World, actor: Actor) -> bool:
        """Whether no time may pass: an owner that is on time has something to do at once."""
        if actor.due is None or actor.phase not in FLYING or world.now < actor.due:
            return False
        if not actor.began and actor.node.step is not READ:
            return True  # it may be about to claim
        entry = view(world.data)
        return entry is not None and entry.claim is not None and entry.claim.token == actor.token

    # One caller.

    def _moves_of(self, world: World, index: int, actor: Actor) -> Iterator[Move]:
        if actor.phase == "asking":
            step = actor.node.step
            if step is READ:
                yield from self._read(world, index, actor)
            elif self._callers[index].kind == "joined" and isinstance(step, CheckAndPut | Call):
                yield from self._join(world, index, actor, step)
            else:
                yield from self._ANSWERS[type(step)](self, world, index, actor, step)
        elif actor.phase == "running":
            yield from self._running(world, index, actor)
        elif actor.phase == "new":
            yield from self._start(world, index, actor)
        elif actor.phase == "following":
            yield from self._give_up(world, index, actor)
        elif actor.phase == "slow":
            found, since = actor.slow
            if world.now > since:
                asking = world.with_actor(index, actor._replace(phase="asking", slow=None))
                now = self._now(world, index)
                label = f"{self._who(index, actor)} looks at the clock: {clock(now)}"
                yield self._tell(label, asking, index, Sent((found, now)), (found, now))

    def _start(self, world: World, index: int, actor: Actor) -> Iterator[Move]:
        caller = self._callers[index]
        who = self._who(index, actor)
        if caller.kind in OPERATORS:
            operate = self._operate if caller.kind == "operator" else self._forget
            yield from operate(world, index, actor)
            return
        leader = self._leader(world, caller.process)
        if caller.kind in REQUESTS and leader is not None:
            if self._callers[leader].params == caller.params or not world.actors[leader].bound:
                label = f"{who} waits for {name_of(leader)}, which this process is running"
                yield label, world.with_actor(index, actor._replace(phase="following"))
                return
        elif caller.kind in ("walk", "joined") or leader is None or not world.actors[leader].bound:
            root = self._root(index, actor.attempt, without_held(lambda: self._flow_of(index)))
            begun = world.with_actor(index, actor._replace(phase="asking", node=root))
            if caller.kind in REQUESTS and self._has_others(world, index):
                yield f"{who} takes the lead in its process", begun
            else:
                yield from self._read(begun, index, begun.actors[index])
            return
        label = f"{who} is refused at once: this process is running the key"
        yield label, self._end(world, index, "refused by its own process")

    def _give_up(self, world: World, index: int, actor: Actor) -> Iterator[Move]:
        """The time of a follower is over: it goes, and nobody else is any different for it."""
        if world.left.timeouts:
            left = world.left._replace(timeouts=world.left.timeouts - 1)
            label = f"{self._who(index, actor)} has no more time to wait"
            yield label, self._end(world._replace(left=left), index, "gives up")

    def _has_others(self, world: World, index: int) -> bool:
        process = self._callers[index].process
        return any(
            other != index and caller.process == process and world.actors[other].phase != "ended"
            for other, caller in enumerate(self._callers)
        )

    def _operate(self, world: World, index: int, actor: Actor) -> Iterator[Move]:
        """An operator asks the ledger about a claim in doubt, and settles that claim."""
        if not in_doubt(self.scenario, world, self._callers[index].process):
            return
        seen = decode(world.data)
        effect = self._effect(world)
        label = f"{self._who(index, actor)} asks the ledger, which knows of {effect or 'nothing'}"
        invariants.check_living(label, self.scenario, world, seen.claim)
        response = None if effect is None else encode_response(effect, "")
        if effect is None:
            world = world._replace(barred=world.barred | {seen.claim.token})
        ttl = self.scenario.ttl * TICK
        root = self._root(
            index,
            (actor.attempt, effect, world.data),
            without_held(
                lambda: self.protocol.settle(KEY, response, ttl, self.scenario.policy, seen)
            ),
        )
        yield label, world.with_actor(index, actor._replace(phase="asking", node=root))

    def _forget(self, world: World, index: int, actor: Actor) -> Iterator[Move]:
        """An operator forgets what is there, or what he has just seen there."""
        if world.data is None:
            return
        found = world.data if self._callers[index].kind == "forget seen" else None
        seen = None if found is None else decode(found)
        root = self._root(
            index,
            (actor.attempt, found),
            without_held(lambda: self.protocol.forget(KEY, seen)),
        )
        begun = world.with_actor(index, actor._replace(phase="asking", node=root, seen=found))
        if found is None:
            yield from self._read(begun, index, begun.actors[index])
        else:
            yield f"{self._who(index, actor)} looks at {describe(found)}, to forget it", begun

    def _flow_of(self, index: int) -> Any:
        caller = self._callers[index]
        request, policy = self.scenario.request(caller), self.scenario.policy
        if caller.kind == "execute":
            return self.protocol.execute(request, policy)
        if caller.kind == "transact":
            return self.protocol.execute_in_transaction(request, policy)
        if caller.kind == "joined":
            return self.protocol.execute_joined(request, policy)
        if caller.kind == "lookup":
            return self.protocol.lookup(request, policy)
        return self.protocol.walk(policy)

    def _leader(self, world: World, process: int) -> int | None:
        for index, actor in enumerate(world.actors):
            caller = self._callers[index]
            if caller.process == process and caller.kind in REQUESTS and actor.phase in FLYING:
                return index
        return None
