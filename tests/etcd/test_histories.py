"""Processes call a cluster whose members are killed, frozen and cut off: is each call one instant step?

In the middle of each recording one fault is in force, and one of the processes is killed; in the end all are.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from etcd.conftest import FACES
from etcd.strikes import KILLS, OTHERS, PARTITIONS, Strike, Strikes
from kvreplay import open_store
from support.etcd import Cluster
from support.histories import KEYS, History, Tally, collected, unexplained, without_unseen
from support.history_process import Caller
from support.linearizability import linearization
from support.networks import Network
from support.nursery import ForkedProgram

CALLER = Path(__file__).parent / "caller.py"
PROCESSES, THREADS = 4, 2
PLAIN = {"keys": KEYS, "operations": None, "kill_at": None, "faulty": True, "lazy": False}


@attrs.define
class Recording:
    """Processes that call a store until they are killed."""

    url: str
    network: Network
    folder: Path
    face: str
    broken: str = ""
    processes: list[ForkedProgram] = attrs.field(factory=list)

    def _told(self, name: str, threads: int) -> dict[str, Any]:
        return {
            **PLAIN,
            "url": self.url,
            "network": self.network.clients.namespace,
            "folder": str(self.folder),
            "face": self.face,
            "broken": self.broken,
            "name": name,
            "threads": threads,
        }

    @contextmanager
    def going_on(self) -> Iterator[None]:
        with contextlib.ExitStack() as ends:
            for number in range(PROCESSES):
                told = self._told(f"p{number}", THREADS)
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
        with open_store(self.url) as store:
            Caller(store, "end", self._told("end", 1)).read_all()
        return collected(self.folder)

    def worked(self) -> int:
        return self._count('["returned"')

    def failed(self) -> int:
        return self._count('["refused"', '["unknown"')

    def _count(self, *outcomes: str) -> int:
        texts = [path.read_text() for path in self.folder.iterdir()]
        return sum(text.count(outcome) for text in texts for outcome in outcomes)


@pytest.fixture
def record(
    cut_cluster: tuple[Network, Cluster], tmp_path: Path, chance: random.Random
) -> Callable[..., Mapping[str, History]]:
    """``record(strike, face)``: what is seen while this strike is in force."""
    network, cluster = cut_cluster
    runs = iter(range(1000))

    def recorded(strike: Strike, face: str = "blocking", **options: Any) -> Mapping[str, History]:
        folder = tmp_path / f"seen{next(runs)}"
        folder.mkdir()
        url = cluster.url(f"histories-{folder.name}-{chance.random()}", timeout="1s")
        recording = Recording(url, network, folder, face, **options)
        with recording.going_on():
            strikes = Strikes(cluster, network, chance, recording.worked, recording.failed)
            strikes.until_worked()
            with strikes.in_force(strike):
                strikes.until_seen(strike)
                recording.processes.pop(0).kill()
            strikes.until_worked()
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
