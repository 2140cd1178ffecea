"""Faults of a cluster whose clients are at work: each is in force for a block, is seen there, and is undone."""

from __future__ import annotations

import collections
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import attrs

from support.etcd import Cluster, Member
from support.networks import Network
from support.waiting import until

__all__ = [
    "KILLS",
    "OTHERS",
    "PARTITIONS",
    "Strike",
    "Strikes",
    "lose_the_leaders_answers",
    "part_a_follower",
    "part_the_leader",
]

Strike = Callable[["Strikes", Sequence[Member]], None]
"""Called with the strikes' cluster and network, and the members: the leader first."""


def kill_the_leader(strikes: Strikes, members: Sequence[Member]) -> None:
    members[0].kill()


def kill_a_follower(strikes: Strikes, members: Sequence[Member]) -> None:
    members[1].kill()


def kill_two(strikes: Strikes, members: Sequence[Member]) -> None:
    members[0].kill()
    members[1].kill()


def kill_all(strikes: Strikes, members: Sequence[Member]) -> None:
    for member in members:
        member.kill()


def freeze_the_leader(strikes: Strikes, members: Sequence[Member]) -> None:
    members[0].freeze()


def cut_off_the_leader(strikes: Strikes, members: Sequence[Member]) -> None:
    strikes.network.cut(members[0].host)


def part_the_leader(strikes: Strikes, members: Sequence[Member]) -> None:
    """Its clients still reach it."""
    strikes.network.part(members[0].host, *(each.host for each in members[1:]))


def part_a_follower(strikes: Strikes, members: Sequence[Member]) -> None:
    strikes.network.part(members[1].host, members[0].host, members[2].host)


def silence_the_leader(strikes: Strikes, members: Sequence[Member]) -> None:
    """It hears the others and its clients, and nobody hears it."""
    clients = strikes.network.clients
    strikes.network.block(members[0].host, clients, *(each.host for each in members[1:]))


def lose_the_leaders_answers(strikes: Strikes, members: Sequence[Member]) -> None:
    """It does what its clients ask for, and they are not told."""
    strikes.network.block(members[0].host, strikes.network.clients)


def part_all(strikes: Strikes, members: Sequence[Member]) -> None:
    one, two, three = (each.host for each in members)
    strikes.network.part(one, two, three)
    strikes.network.part(two, three)


KILLS: Mapping[Strike, int] = {
    kill_the_leader: 1,
    kill_a_follower: 1,
    kill_two: 2,
    kill_all: 3,
}
"""How many members each kills."""
PARTITIONS = (
    *(cut_off_the_leader, part_the_leader, part_a_follower, silence_the_leader),
    *(lose_the_leaders_answers, part_all),
)
OTHERS = (freeze_the_leader,)
_WITHOUT_A_MAJORITY = (kill_two, kill_all, part_all)
_LEADER_STAYS = (kill_a_follower, part_a_follower, lose_the_leaders_answers)


@attrs.define
class Strikes:
    """A cluster that is struck again and again.

    Attributes:
        worked: how many calls of the clients have succeeded until now.
        failed: how many have failed.
    """

    cluster: Cluster
    network: Network
    chance: random.Random
    worked: Callable[[], int]
    failed: Callable[[], int]
    done: collections.Counter[str] = attrs.field(factory=collections.Counter)
    _failed_before: int = 0

    @property
    def kills(self) -> int:
        return sum(self.done[strike.__name__] * members for strike, members in KILLS.items())

    @property
    def partitions(self) -> int:
        return sum(self.done[strike.__name__] for strike in PARTITIONS)

    def told(self) -> str:
        each = (f"{name.replace('_', ' ')}: {times}" for name, times in sorted(self.done.items()))
        return f"{self.kills} members killed, {self.partitions} partitions ({', '.join(each)})"

    def until_worked(self, more: int = 20) -> None:
        """Wait until so many further calls have succeeded."""
        before = self.worked()
        until(lambda: self.worked() >= before + more)

    def strike(self, strike: Strike) -> None:
        """Strike once; wait until the clients have met it, and until they work again."""
        with self.in_force(strike):
            self.until_seen(strike)
        self.until_worked()

    def until_seen(self, strike: Strike) -> None:
        """Wait until the clients have met what is in force: they go on, or fail if they must."""
        if strike in _WITHOUT_A_MAJORITY:
            until(lambda: self.failed() > self._failed_before)
        else:
            self.until_worked()

    @contextmanager
    def in_force(self, strike: Strike) -> Iterator[None]:
        """Strike; in the end undo it, and wait until all members answer."""
        leader = self.cluster.leader()
        followers = [member for member in self.cluster.members if member is not leader]
        self.chance.shuffle(followers)
        time.sleep(self.chance.uniform(0, 0.1))  # the random instant
        self._failed_before = self.failed()
        strike(self, [leader, *followers])
        try:
            if strike not in (*_WITHOUT_A_MAJORITY, *_LEADER_STAYS):
                until(lambda: self._follow_another(followers, leader))
            yield
        finally:
            self.network.heal()
            self.cluster.start_all()
        self.done[strike.__name__] += 1

    def _follow_another(self, followers: Sequence[Member], leader: Member) -> bool:
        """Whether all followers follow one of themselves: so the strike was felt."""
        told = [member.status() for member in followers]
        ids = [status.get("header", {}).get("member_id") for status in told]
        return {status.get("leader") for status in told} <= set(ids)
