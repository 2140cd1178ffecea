"""Processes ask for payments on a cluster whose members are killed, frozen and cut off, and they are killed themselves.

In the end no payment has been made twice, and every answer that somebody was given is there.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from etcd.payer import DAY
from etcd.strikes import KILLS, OTHERS, PARTITIONS, Strike, Strikes
from kvreplay import SystemClock, open_store
from support.etcd import Cluster
from support.networks import Network
from support.nursery import ForkedProgram
from torture.audit import State, audit
from torture.ledger import Account, Ledger

PAYER = Path(__file__).parent / "payer.py"
MODES = ("sync", "async")
PAYERS, THREADS = 4, 2
TIMEOUT = "1s"
LEASE = 2.0  # seconds; after a kill it is soon over
TIDY = {
    # Else a member that starts again would read all that has happened.
    "snapshot-count": 1000,
    "auto-compaction-mode": "revision",
    "auto-compaction-retention": "1000",
}


class LastClock:
    """When every lease is over, even one that was taken by a clock that was a day fast."""

    def now_ms(self) -> int:
        return SystemClock().now_ms() + 2 * DAY


@attrs.define
class Storm:
    """Payers at work on a cluster that is struck, half of them by clocks that jump."""

    cluster: Cluster
    network: Network
    ledger: Ledger
    chance: random.Random
    broken: str = ""
    killed: int = 0
    _numbers: Iterator[int] = attrs.field(factory=itertools.count)
    _payers: list[ForkedProgram] = attrs.field(factory=list)
    _ends: contextlib.ExitStack = attrs.field(factory=contextlib.ExitStack)

    def start_payer(self) -> None:
        number = next(self._numbers)
        members = self.cluster.members
        first = number % len(members)
        told = {
            "network": self.network.clients.namespace,
            "url": self.url(*members[first:], *members[:first]),
            "ledger": str(self.ledger.path),
            "mode": MODES[number % 2],
            "jumps": number // 2 % 2,
            "lease": LEASE,
            "first": self.last_key(),
            "seed": self.chance.random(),
            "threads": THREADS,
            "broken": self.broken,
        }
        payer = self._ends.enter_context(ForkedProgram(PAYER, told))
        self._payers.append(payer)

    def url(self, *members: Any) -> str:
        return self.cluster.url("payments", *members, timeout=TIMEOUT)

    def last_key(self) -> int:
        """From which a new payer goes on, so that it asks for what others ask for."""
        return max(map(int, self.ledger.accounts()), default=0)

    def kill_payer(self) -> None:
        """Kill the payer that has lived longest, and start another one."""
        with self._payers.pop(0) as payer:
            payer.kill()
            assert payer.popen.returncode == -9, payer._complaint()
        self.killed += 1
        self.start_payer()

    def answers(self) -> int:
        return sum(len(each.answers) for each in self.accounts())

    def failures(self) -> int:
        return sum(len(each.failures) for each in self.accounts())

    def accounts(self) -> Sequence[Account]:
        return list(self.ledger.accounts().values())

    def go_on(self, strikes: Strikes, kills: int, partitions: int) -> None:
        """Strike until so many members and payers were killed, and so many partitions made."""
        for _ in range(PAYERS):
            self.start_payer()
        for payer in self._payers:
            assert payer.hear() == "begun"
        strikes.until_worked()
        for strike in self._each(strikes, kills, partitions):
            strikes.strike(strike)
            self.kill_payer()
        while self.killed < kills:
            strikes.until_worked(1)
            self.kill_payer()
        for payer in self._payers:
            assert payer.popen.poll() is None, payer._complaint()
            payer.kill()

    def _each(self, strikes: Strikes, kills: int, partitions: int) -> Iterator[Strike]:
        parting = itertools.cycle(PARTITIONS)
        killing = itertools.cycle([*KILLS, *OTHERS])
        while strikes.kills < kills or strikes.partitions < partitions:
            if strikes.kills < kills:
                yield next(killing)
            if strikes.partitions * kills <= strikes.kills * partitions:
                yield next(parting)

    def strikes(self) -> Strikes:
        return Strikes(self.cluster, self.network, self.chance, self.answers, self.failures)

    def audit(self) -> collections.Counter[State]:
        keys = list(self.ledger.accounts())
        with open_store(self.url()) as store:
            return audit(store, self.ledger, keys, fails=True, clock=LastClock())

    def close(self) -> None:
        self._ends.close()


@pytest.fixture
def storm(tmp_path: Path, chance: random.Random) -> Iterator[Callable[..., Storm]]:
    """``storm()``: on a cluster of its own."""
    with contextlib.ExitStack() as ends:
        network = ends.enter_context(Network(3))
        ends.enter_context(network.inside())
        cluster = ends.enter_context(Cluster(network=network, settings=TIDY))

        def make(**options: Any) -> Storm:
            storm = Storm(cluster, network, Ledger(tmp_path / "ledger"), chance, **options)
            open_store(storm.url()).close()
            ends.callback(storm.close)
            return storm

        yield make


def test_no_payment_is_made_twice_and_no_answer_is_lost(
    storm: Callable[..., Storm], kills: int, partitions: int, tell: Callable[[str], None]
) -> None:
    at_work = storm()
    strikes = at_work.strikes()
    at_work.go_on(strikes, kills, partitions)
    states = at_work.audit()
    failures = collections.Counter(
        failure.partition("(")[0] for each in at_work.accounts() for failure in each.failures
    )
    tell(
        f"{strikes.told()}, {at_work.killed} clients killed; {sum(states.values())} keys:"
        f" {states[State.ANSWERED]} answered, {states[State.IN_DOUBT]} in doubt;"
        f" {at_work.answers()} answers given; failures: {dict(failures)}; 0 lost, 0 doubled"
    )
    assert strikes.kills >= kills and strikes.partitions >= partitions
    assert at_work.killed >= kills
    assert failures["StoreUnavailableError"]
    assert states[State.IN_DOUBT]


def test_an_engine_that_compares_nothing_is_found_out(storm: Callable[..., Storm]) -> None:
    """So the test above can fail."""
    at_work = storm(broken="compares_nothing")
    at_work.go_on(at_work.strikes(), 2, 0)
    with pytest.raises(AssertionError, match="had its effect 2 times|was answered"):
        at_work.audit()
