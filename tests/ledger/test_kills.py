"""Payments in transactions of their own on PostgreSQL, whose processes and whose server are killed again and again.

In the end the rows of the ledger and the records are the same, key by key, and none is in doubt.
"""

from __future__ import annotations

import collections
import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import pytest

from kvreplay import Replay, open_store
from ledger.payer import BEFORE_COMMIT, POINTS
from support.needs import needs_psycopg
from support.nursery import ForkedProgram
from support.waiting import until

PAYER = Path(__file__).parent / "payer.py"
AT_ONCE = 6
THREADS = 2
LIVES = (0.0, 0.08)  # seconds that a payer works before it is killed from outside
RUNS = (0.0, 0.1)  # seconds that payers work on between two kills of the server


@attrs.define
class Storm:
    """Payers at work on a server, and what they said."""

    server: Any
    chance: random.Random
    twin: bool = False
    next: int = 0  # the number from which a new payer goes on
    told: dict[str, set[str]] = attrs.field(factory=lambda: collections.defaultdict(set))
    cuts: collections.Counter[str] = attrs.field(factory=collections.Counter)
    last_words: list[tuple[str, ...]] = attrs.field(factory=list)
    """Of each thing that a killed payer had begun and not ended: its key and token, if it has inserted its row."""
    bugs: list[str] = attrs.field(factory=list)

    def payer(self, point: str | None = None) -> ForkedProgram:
        """Start a payer, which dies at this point of one of its first payments; ``None``: by us."""
        told = {
            "url": self.server.url,
            "own_url": self.server.url,
            "twin": self.twin,
            "first": max(0, self.next - 5),
            "seed": self.chance.random(),
            "threads": THREADS,
            "point": point,
            "after": self.chance.randrange(4),
        }
        return ForkedProgram(PAYER, told)

    def note(self, said: str) -> None:
        """Remember what a payer has said until its death."""
        inserted = {}
        for line in said.splitlines():
            kind, *words = line.split(" ")
            if kind == "inserted":
                inserted[words[0]] = words[1]
            elif kind == "told":
                inserted.pop(words[0], None)
                self.told[words[0]].add(words[1])
                self.next = max(self.next, int(words[0]))
            elif kind == "cut":
                inserted.pop(words[1], None)
                self.cuts[words[0]] += 1
            elif kind == "bug":
                self.bugs.append(line)
        self.last_words += inserted.items()

    def kill_clients(self, times: int) -> collections.Counter[str]:
        """Kill so many payers; say at which points."""
        kills: collections.Counter[str] = collections.Counter()
        working: list[tuple[ForkedProgram, str | None]] = []
        while sum(kills.values()) < times:
            while len(working) < AT_ONCE:
                point = self.chance.choice([*POINTS, None])
                working.append((self.payer(point), point))
            payer, point = working.pop(0)
            with payer:
                assert payer.hear() == "begun"
                if point is None:
                    time.sleep(self.chance.uniform(*LIVES))  # the random instant
                    self.note(payer.kill())
                else:
                    self.note(payer.rest())
                assert payer.popen.returncode == -9, self.bugs or payer._complaint()
            kills[point or "anywhere"] += 1
        for payer, _ in working:
            with payer:
                self.note(payer.kill())
        return kills

    def kill_server(self, times: int) -> None:
        """Kill the server so many times, under payers that live."""
        with contextlib.ExitStack() as ends:
            listeners = ends.enter_context(ThreadPoolExecutor(AT_ONCE))
            payers = [ends.enter_context(self.payer()) for _ in range(AT_ONCE)]
            for payer in payers:
                assert payer.hear() == "begun"
            heard = [listeners.submit(payer.hear_out) for payer in payers]
            for _ in range(times):
                before = self.payments
                until(lambda before=before: self.payments > before + AT_ONCE)  # they pay again
                time.sleep(self.chance.uniform(*RUNS))  # the random instant
                self.server.kill()
                self.server.start()
            for payer, said in zip(payers, heard, strict=True):
                assert payer.popen.poll() is None
                payer.popen.kill()
                self.note(said.result())

    def complaints(self) -> Sequence[str]:
        """Compare the ledger, the records and what was told, key by key."""
        others = "SELECT 1 FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        until(lambda: not self.server.execute(others))
        rows = collections.defaultdict(list)
        for key, token in self.server.execute("SELECT payment, token FROM ledger"):
            rows[key].append(token)
        with open_store(self.server.url) as store:
            replay = Replay(store, "pay", ttl="1h")
            records = {record.key.id: record for record in replay.records()}
            found = [f"{key} is in doubt" for key, each in records.items() if each.claim]
            answers = {
                key: [replay.lookup(("payer", key), {"msat": 1000}).response]  # type: ignore[union-attr]
                for key, each in records.items()
                if not each.claim
            }
        for key in sorted({*rows, *answers, *self.told}):
            told = [*self.told.get(key, ())]
            if rows.get(key) != answers.get(key) or told not in ([], answers.get(key)):
                found.append(
                    f"{key}: {len(rows.get(key, ()))} rows, answer {key in answers}, told {len(told)}"
                )
        return [*self.bugs, *found]

    @property
    def payments(self) -> int:
        [(count,)] = self.server.execute("SELECT count(*) FROM ledger")
        return int(count)

    def committed(self, token: str) -> bool:
        return bool(self.server.execute("SELECT 1 FROM ledger WHERE token = %s", token))


@pytest.fixture
def storm() -> Iterator[Callable[..., Storm]]:
    """``storm()``: on a server of its own."""
    needs_psycopg()
    from support.postgres import Server

    servers = []
    seed = random.randrange(10**6)
    print(f"seed {seed}")

    def make(**options: Any) -> Storm:
        servers.append(Server())
        servers[-1].execute("CREATE TABLE ledger (payment text, token text)")
        open_store(servers[-1].url).close()
        return Storm(servers[-1], random.Random(seed), **options)

    yield make
    for each in servers:
        each.close()


def test_clients_are_killed(
    storm: Callable[..., Storm], client_kills: int, tell: Callable[[str], None]
) -> None:
    at_work = storm()
    kills = at_work.kill_clients(client_kills)
    assert at_work.complaints() == []
    began = len(at_work.last_words)
    committed = sum(at_work.committed(token) for _, token in at_work.last_words)
    tell(
        f"{sum(kills.values())} kills, of them"
        f" {', '.join(f'{kills[point]} {point}' for point in (*POINTS, 'anywhere'))};"
        f" {began} transactions had a row of the ledger and were not told to be committed:"
        f" {committed} of them are; {at_work.payments} payments, rows and records equal"
    )
    aimed = sum(kills[point] for point in BEFORE_COMMIT)
    assert began - committed >= aimed > client_kills / 5


def test_the_server_is_killed(
    storm: Callable[..., Storm], server_kills: int, tell: Callable[[str], None]
) -> None:
    at_work = storm()
    at_work.kill_server(server_kills)
    assert at_work.complaints() == []
    cuts = at_work.cuts
    tell(
        f"{server_kills} kills of the server; transactions cut:"
        f" {', '.join(f'{cuts[phase]} {phase}' for phase in sorted(cuts))};"
        f" {at_work.payments} payments, rows and records equal"
    )
    between = cuts["inserted"] + cuts["answered"] + cuts["committing"]
    assert between >= server_kills


def test_a_ledger_with_a_commit_of_its_own_is_found_out(storm: Callable[..., Storm]) -> None:
    """So the tests above can fail."""
    at_work = storm(twin=True)
    at_work.kill_clients(40)
    assert any("rows" in complaint for complaint in at_work.complaints())
