"""Processes call a cluster whose members are killed, frozen and cut off: is each call one instant step?

In the middle of each recording one fault is in force, and one of the processes is killed; in the end all are.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from etcd.conftest import FACES
from etcd.strikes import (
    KILLS,
    OTHERS,
    PARTITIONS,
    Strike,
    Strikes,
    lose_the_leaders_answers,
    part_a_follower,
    part_the_leader,
)
from kvreplay import open_store
from support.etcd import Cluster
from support.histories import KEYS, History, Tally, collected, unexplained, without_unseen
from support.history_process import NAMESPACE, named, read
from support.linearizability import Operation, linearization
from support.networks import Network
from support.nursery import ForkedProgram
from support.waiting import until

CALLER = Path(__file__).parent / "caller.py"
TIMEOUT = "1s"
FAILURES = ('["refused"', '["unknown"')
PLAIN = {"keys": KEYS, "operations": None, "kill_at": None, "faulty": True, "lazy": False}


@attrs.define
class Recording:
    """Processes that call a store until they are killed: three for each member.

    One asks that member first, and goes on to others. Two ask nobody else: so they meet whatever happens to it. Of
    these one only reads, and so is still there when the member hears of no change any more.
    """

    cluster: Cluster
    network: Network
    folder: Path
    face: str
    broken: str = ""
    processes: list[ForkedProgram] = attrs.field(factory=list)

    def _told(self, member: int, kind: str) -> dict[str, Any]:
        return {
            **PLAIN,
            "url": self.url(member, alone=kind != "any"),
            "network": self.network.clients.namespace,
            "folder": str(self.folder),
            "face": self.face,
            "broken": "",
            "broken_engine": self.broken,
            "name": f"{kind}-{member}",
            "threads": 2 if kind == "any" else 1,
            "only_reads": kind == "reads",
        }

    def url(self, first: int = 0, alone: bool = False) -> str:
        members = self.cluster.members
        asked = members[first : first + 1] if alone else [*members[first:], *members[:first]]
        return self.cluster.url(self.folder.name, *asked, timeout=TIMEOUT)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        with contextlib.ExitStack() as ends:
            for member, kind in itertools.product(range(3), ("any", "reads", "changes")):
                told = self._told(member, kind)
                self.processes.append(ends.enter_context(ForkedProgram(CALLER, told)))
            for process in self.processes:
                assert process.hear() == "ready"
            for process in self.processes:
                process.begin()
            yield
            self.processes.pop().kill()
            for process in self.processes:
                assert process.popen.poll() is None, process._complaint()

    def histories(self) -> Mapping[str, History]:
        """What all have seen, and what is there in the end."""
        seen = collected(self.folder)
        with open_store(self.url()) as store:
            for key, history in seen.items():
                invoked = time.monotonic_ns()
                found = named(read(store, *NAMESPACE, key))
                history.append(Operation("read", invoked, time.monotonic_ns(), found=found))
        return seen

    def worked(self) -> int:
        return self._count("any-*", '["returned"')

    def failed(self) -> int:
        return self._count("any-*", *FAILURES)

    def failed_at_one(self) -> int:
        """How many reads have failed of those who ask one member."""
        return self._count("reads-*", *FAILURES)

    def _count(self, files: str, *outcomes: str) -> int:
        texts = [path.read_text() for path in self.folder.glob(files)]
        return sum(text.count(outcome) for text in texts for outcome in outcomes)


@pytest.fixture
def record(
    cut_cluster: tuple[Network, Cluster], tmp_path: Path, chance: random.Random
) -> Callable[..., Mapping[str, History]]:
    """``record(strike, face)``: what is seen while this strike is in force."""
    network, cluster = cut_cluster

    def recorded(strike: Strike, face: str = "blocking", **options: Any) -> Mapping[str, History]:
        folder = tmp_path / f"seen-{uuid.uuid4()}"  # it names the store too
        folder.mkdir()
        recording = Recording(cluster, network, folder, face, **options)
        with recording.going_on():
            strikes = Strikes(cluster, network, chance, recording.worked, recording.failed)
            strikes.until_worked(100)
            before = recording.failed_at_one()
            with strikes.in_force(strike):
                strikes.until_seen(strike)
                if recording.broken != "reads_from_one_member":  # which would notice nothing
                    until(lambda: recording.failed_at_one() > before)
                recording.processes.pop(0).kill()
            strikes.until_worked(100)
        return recording.histories()

    return recorded


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("strike", [*KILLS, *OTHERS, *PARTITIONS])
def test_what_was_seen_can_be_explained(
    strike: Strike, face: str, record: Callable[..., Mapping[str, History]], tell: Any
) -> None:
    tally = Tally()
    for key, history in record(strike, face).items():
        assert linearization(without_unseen(history)) is not None, unexplained(history, 0, key)
        tally.add(history)
    assert tally.at_once > 1, "the calls came one after another: nothing was tested"
    assert tally.changed, "no check-and-put changed anything: nothing was tested"
    tell(tally.told())


# Engines that are broken on purpose.


@pytest.mark.parametrize(
    ("broken", "strike"),
    [
        ("reads_from_one_member", part_the_leader),
        ("reads_from_one_member", part_a_follower),
        ("sends_a_change_again", lose_the_leaders_answers),
        ("denies_what_it_has_sent", lose_the_leaders_answers),
    ],
)
def test_what_a_broken_engine_shows_cannot_be_explained(
    broken: str, strike: Strike, record: Callable[..., Mapping[str, History]], tell: Any
) -> None:
    for run in range(20):
        seen = record(strike, broken=broken)
        rejected = [key for key in KEYS if linearization(without_unseen(seen[key])) is None]
        if rejected:
            tell(f"{len(rejected)} of {len(KEYS)} histories rejected, in run {run + 1}")
            return
    pytest.fail("the checker never noticed")
