"""Threads, tasks and processes ask for the same keys, and some are killed: nothing is lost, doubled or altered.

``stress_process.py`` is one of the processes. What must have happened is told by their callers' files
and by the ledger of effects, which know no store. ``--requests N`` is how many each caller makes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import lmdb
import msgpack
import pytest

from kvreplay import InDoubtError, Replay, ReplayRecord, State, open_store
from kvreplay._protocol.params import canonical
from kvreplay._protocol.record import decode
from kvreplay.clock import SystemClock
from support.crew import run_together
from support.needs import needs_psycopg
from support.programs import PROGRAMS
from support.replaying import FakeClock, never
from support.stress_process import SETTINGS, START, Request, how

SCRIPT = PROGRAMS / "stress_process.py"


@attrs.frozen
class Load:
    """What runs at once: threads and tasks are those of each process."""

    engine: str
    processes: int = 4
    victims: int = 0
    threads: int = 6
    tasks: int = 20
    options: str = ""
    share: float = 1.0
    """Of the requests that each caller usually makes."""
    lease: float = 30.0
    """Seconds: of the server's clock if ``by_lease``, else of time that goes on with the effects."""

    @property
    def by_lease(self) -> bool:
        """Whether only the lease tells that an owner was killed."""
        return self.engine == "postgresql" and self.victims > 0

    @property
    def callers(self) -> int:
        """Threads and tasks of each process."""
        return self.threads + self.tasks


LOADS = {
    "lmdb": Load("lmdb"),
    "lmdb-killed": Load("lmdb", victims=2),
    "lmdb-growing": Load("lmdb", processes=1, threads=12, tasks=80, options="?map_size=64KiB"),
    "sqlite": Load("sqlite", share=0.7),
    "sqlite-killed": Load("sqlite", victims=2, share=0.4),
    "filesystem": Load("filesystem", processes=3, share=0.4),
    "filesystem-killed": Load("filesystem", processes=3, victims=1, share=0.4),
    "postgresql": Load("postgresql", processes=3, options="&pool_size=4", share=0.4),
    "postgresql-killed": Load(
        "postgresql", processes=3, victims=1, options="&pool_size=4", share=0.3, lease=10
    ),
}


@attrs.define
class Effect:
    """A line of the ledger, or an entry that a transaction left with its answer."""

    nonce: str
    process: int | None


@attrs.define
class Aftermath:
    """What is left when all is over: a store, and what callers and the ledger tell of it.

    Keys of the mappings are ``(namespace, n)``.
    """

    load: Load
    path: Path
    url: str
    killed: list[int] = attrs.field(factory=list)
    ends: Counter[str] = attrs.field(factory=Counter)
    mistaken: Counter[str] = attrs.field(factory=Counter)
    answers: dict[tuple[str, int], list[tuple[str, bytes]]] = attrs.field(
        factory=lambda: defaultdict(list)
    )
    doubted: set[tuple[str, int]] = attrs.field(factory=set)
    effects: dict[tuple[str, int], list[Effect]] = attrs.field(factory=lambda: defaultdict(list))

    def open(self) -> Any:
        return open_store(self.url)

    def replay(self, store: Any, namespace: str, **settings: Any) -> Replay:
        if self.load.by_lease and "clock" not in settings:
            settings["clock"] = an_hour_later()
        return Replay(store, namespace, **SETTINGS[namespace], **settings)

    def records(self) -> dict[tuple[str, int], ReplayRecord]:
        """Every record, by what its key says; one that cannot be read is an error."""
        with self.open() as store:
            return {
                (namespace, int(record.key.id.removeprefix("session-"))): record
                for namespace in SETTINGS
                for record in self.replay(store, namespace).records()
            }

    def read_what_callers_saw(self, folder: Path) -> None:
        for path in folder.glob("*-t*-*"):
            for line in whole_lines(path):
                end, namespace, n, mistaken, *answer = json.loads(line)
                if mistaken:
                    self.mistaken[end] += 1
                    continue
                self.ends[end] += 1
                if answer:
                    self.answers[namespace, n].append((end, bytes.fromhex(answer[0])))
                if end == "InDoubtError":
                    self.doubted.add((namespace, n))

    def read_effects(self, ledger: Path) -> None:
        for line in whole_lines(ledger):
            namespace, n, nonce, process = line.split()
            self.effects[namespace, int(n)].append(Effect(nonce, int(process)))
        with self.open() as store:
            for n in store.list("effects", ""):
                nonce = store.read("effects", "", n).decode()
                self.effects["kept", int(n)].append(Effect(nonce, None))


def an_hour_later() -> FakeClock:
    """When all leases are over, and what is kept is still kept."""
    clock = FakeClock()
    clock.now = SystemClock().now_ms() + 3_600_000
    return clock


def whole_lines(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1]  # a kill may have cut the last one


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            name,
            marks=[
                pytest.mark.xdist_group(name),
                *([pytest.mark.any_python] if load.engine == "postgresql" else []),
            ],
        )
        for name, load in LOADS.items()
    ],
)
def after(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
) -> Iterator[Aftermath]:
    """Let it all happen, once for all tests of a load."""
    if "PYTEST_XDIST_WORKER" in os.environ:  # once for all workers too: it fails at a second time
        once = tmp_path_factory.getbasetemp().parent / f"{request.param} ran"
        once.touch(exist_ok=False)
    load = LOADS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    seen, ledger = folder / "seen", folder / "ledger"
    seen.mkdir()
    ledger.touch()
    requests = round(pytestconfig.getoption("--requests") * load.share)
    rng = random.Random(request.param)
    with place_of(load, folder / "store") as url:
        aftermath = Aftermath(load, folder / "store", url)
        with aftermath.open() as store:
            store.write("effects", "count", "all", b"0")
        told = [
            {
                "url": url,
                "folder": str(seen),
                "ledger": str(ledger),
                "number": n,
                "processes": load.processes,
                "threads": load.threads,
                "tasks": load.tasks,
                "requests": requests,
                "keys": 20 * requests,
                "transactional": load.engine != "filesystem",
                "lease": load.lease,
                "by_lease": load.by_lease,
                "kill_at": rng.randrange(requests // 2) if n < load.victims else None,
            }
            for n in range(load.processes)
        ]
        aftermath.killed = run_together(SCRIPT, told)
        aftermath.read_what_callers_saw(seen)
        aftermath.read_effects(ledger)
        yield aftermath


@contextlib.contextmanager
def place_of(load: Load, path: Path) -> Iterator[str]:
    """Return the URL of a new store: at this path, or on a server."""
    if load.engine != "postgresql":
        yield f"{load.engine}:{path}{load.options}"
        return
    needs_psycopg()
    from support.postgres import new_schema
    from support.shared_postgres import shared_server

    with new_schema(shared_server()) as schema:
        yield f"{schema.url}{load.options}"


def test_what_happened(after: Aftermath, tell: Callable[[str], None]) -> None:
    """That there was something to lose: or all tests below would be about nothing."""
    load, ends = after.load, after.ends
    tell(
        f"{load.engine}{load.options}: {load.processes} processes of {load.threads} threads and"
        f" {load.tasks} tasks, {load.victims} processes killed: {sum(ends.values()):,} requests,"
        f" {ends['ran']:,} executions, {sum(map(len, after.effects.values())):,} effects,"
        f" {ends['replayed']:,} replays, {ends['ExpiredError']} expired,"
        f" {len(after.doubted)} keys met in doubt, {sum(after.mistaken.values())} mistaken"
    )
    assert len(after.killed) == load.victims
    assert ends["ran"] and ends["replayed"] and after.mistaken
    assert ends["ExpiredError"] or load.by_lease  # a second is longer there


def test_nobody_is_told_anything_unexpected(after: Aftermath) -> None:
    expected = {"ran", "replayed", "ExpiredError"}
    if after.killed:
        expected.add("InDoubtError")
    if "map_size" in after.load.options:
        expected.add("StoreUnavailableError")  # a transaction in a map that has to grow
    assert after.ends.keys() <= expected
    assert after.mistaken.keys() == {"ParamsMismatchError"}  # other params never get an answer


def test_no_answer_is_lost(after: Aftermath) -> None:
    """Each acknowledged answer is the stored one, byte for byte."""
    records = after.records()
    for at, answers in after.answers.items():
        if at[0] == "kept":
            assert records[at].state is State.COMPLETED
            assert {answer for _, answer in answers} == {records[at].response}


def test_no_effect_is_doubled(after: Aftermath) -> None:
    """One effect for each answer, and none without one that its process did not die of."""
    records = after.records()
    for at in after.effects.keys() | records.keys():
        if at[0] != "kept":
            continue
        effects, record = after.effects[at], records.get(at)
        assert len(effects) <= 1
        if record is None:  # without a claim, a kill in the handler leaves no trace
            assert how(at[1]) == "claimless" or not effects
            assert all(effect.process in after.killed for effect in effects)
        elif record.state is State.COMPLETED:
            assert [effect.nonce for effect in effects] == [record.load_response()["nonce"]]
        else:
            assert pid_of(record) in after.killed
            assert not effects or effects[0].process == pid_of(record)


def test_each_run_is_told_to_one_caller(after: Aftermath) -> None:
    """Even of keys that expire and run anew: each effect is some caller's own, and each answer's."""
    for at in after.effects.keys() | after.answers.keys():
        ran = Counter(nonce_in(answer) for end, answer in after.answers[at] if end == "ran")
        nonces = {effect.nonce for effect in after.effects[at]}
        assert {nonce_in(answer) for _, answer in after.answers[at]} <= nonces
        assert len(nonces) == len(after.effects[at])
        for effect in after.effects[at]:
            may_be_untold = effect.process in after.killed or (after.killed and not effect.process)
            assert ran[effect.nonce] == 1 or (may_be_untold and not ran[effect.nonce])


def test_transactions_counted_every_effect(after: Aftermath) -> None:
    """Each transaction read the count that the one before it had left."""
    with after.open() as store:
        effects = len(store.list("effects", ""))
        assert int(store.read("effects", "count", "all")) == effects
    assert bool(effects) == (after.load.engine != "filesystem")


def test_no_record_is_altered(after: Aftermath) -> None:
    for (namespace, n), record in after.records().items():
        request = Request(namespace, n, how(n))
        assert (record.key.scope, record.key.id) == request.key
        if record.state is State.TOMBSTONE:
            assert namespace == "brief"
            continue
        assert record.params == canonical(request.params)
        if record.state is State.COMPLETED:
            answer = record.load_response()
            assert answer == {"n": n, "nonce": answer["nonce"], "invoice": b"i" * (n % 500)}


def test_direct_changes_are_the_last_ones(after: Aftermath) -> None:
    """Each entry is what its one writer last put, or was putting when it was killed."""
    for path in (after.path.parent / "seen").glob("*-journal"):
        writer = f"p{path.name.split('-')[0]}"
        possible: dict[str, set[int | None]] = defaultdict(lambda: {None})
        for line in whole_lines(path):
            end, key, count = json.loads(line)
            possible[key] = {count} if end == "done" else {count, *possible[key]}
        with after.open() as store:
            found = {
                key: int(store.read("journal", writer, key))
                for key in store.list("journal", writer)
            }
        assert possible
        assert all(found.get(key) in counts for key, counts in possible.items())


def test_the_indexes_agree_with_the_entries(after: Aftermath) -> None:
    """Byte for byte, as docs/format.md describes LMDB's; the last test sweeps every engine."""
    if after.load.engine == "sqlite":
        with contextlib.closing(sqlite3.connect(after.path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            stray = """SELECT count(*) FROM kvreplay_expiry LEFT JOIN ldk_node_data
                USING (primary_namespace, secondary_namespace, key, sort_order)
                WHERE value IS NULL"""
            assert connection.execute(stray).fetchone() == (0,)
            orders = "SELECT count(*), count(DISTINCT sort_order) FROM ldk_node_data"
            assert len(set(connection.execute(orders).fetchone())) == 1, "a number was given twice"
    if after.load.engine != "lmdb":
        return
    with lmdb.open(str(after.path), max_dbs=8, lib_version=0) as env, env.begin() as txn:
        entries, index = (
            dict(txn.cursor(env.open_db(name, txn, create=False)))
            for name in (b"entries", b"expiry")
        )
        created = dict(txn.cursor(env.open_db(b"created", txn, create=False)))
        last = txn.get(b"created", db=env.open_db(b"meta", txn, create=False))
    expected, creations = set(), {}
    for address, stored in entries.items():
        primary, rest = address.split(b"\0", 1)
        stamp = stored[:8]
        namespace, _, key = address.rpartition(b"\0")
        creations[hashlib.sha256(namespace).digest()[:16] + stored[8:16]] = key
        if stamp != bytes(8):
            expected.add(primary + b"\0" + stamp + rest)
        if settings := SETTINGS.get(primary.decode()):
            moment = last_moment(decode(stored[24:]), settings)
            assert int.from_bytes(stamp, "big") == (0 if moment is None else moment + 1)
    assert index == dict.fromkeys(expected, b"")
    assert created == creations
    numbers = [item[16:] for item in created]
    assert len(set(numbers)) == len(numbers), "a number was given twice"
    assert max(numbers) <= last
    assert {key.split(b"\0")[0] for key in index} >= {b"kept", b"journal"}


def test_a_key_in_doubt_is_one_whose_owner_was_killed(after: Aftermath) -> None:
    """What a survivor met in doubt still is; nobody is answered, and nothing runs, until it is settled."""
    records = after.records()
    in_doubt = {at for at, record in records.items() if record.state is State.IN_PROGRESS}
    assert after.doubted <= in_doubt
    assert len(after.killed) <= len(in_doubt) <= len(after.killed) * after.load.callers
    with after.open() as store:
        for namespace, n in in_doubt:
            request = Request(namespace, n, how(n))
            assert pid_of(records[namespace, n]) in after.killed
            assert namespace != "kept" or not after.answers[namespace, n]
            with pytest.raises(InDoubtError):
                after.replay(store, namespace).execute(request.key, request.params, never)


def test_settled_by_the_ledger_each_key_has_its_effect_once(after: Aftermath) -> None:
    settled = Counter[str]()
    with after.open() as store:
        replay = after.replay(store, "kept")
        for at, record in after.records().items():
            request = Request(*at, how(at[1]))
            if at[0] == "kept" and record.state is State.IN_PROGRESS:
                settled["happened" if after.effects[at] else "not"] += 1
                if effects := after.effects[at]:
                    assert replay.resolve(request.key, response={"nonce": effects[0].nonce})
                    outcome = replay.execute(request.key, request.params, never)
                    assert outcome.response == {"nonce": effects[0].nonce}
                else:
                    assert replay.release(request.key)
                    assert not replay.execute(request.key, request.params, dict).replayed
    states = Counter(record.state for at, record in after.records().items() if at[0] == "kept")
    assert states.keys() == {State.COMPLETED}
    assert len(settled) >= min(len(after.killed), 2)


def test_a_sweep_finds_every_record_in_the_end_but_no_claim(after: Aftermath) -> None:
    far = FakeClock()
    far.now = START + 10**15
    # A kill between two steps of the file system leaves a marker of nothing, which goes now.
    markers = 0 if after.load.engine != "filesystem" else len(after.killed) * after.load.callers
    records = after.records()
    with after.open() as store:
        for namespace in SETTINGS:
            own = [record for at, record in records.items() if at[0] == namespace]
            due = [record for record in own if record.expires_at is not None]
            swept = after.replay(store, namespace, clock=far).sweep(limit=10**6)
            assert (swept.removed, swept.more) == (len(due), False)
            assert 0 <= swept.visited - swept.removed <= markers
    assert all(record.state is State.IN_PROGRESS for record in after.records().values())


def nonce_in(answer: bytes) -> str:
    return str(msgpack.unpackb(answer)["nonce"])


def pid_of(record: ReplayRecord) -> int:
    assert record.claim is not None
    return int(record.claim.owner.split(":")[-2])


def last_moment(record: ReplayRecord, settings: dict[str, Any]) -> int | None:
    """When nobody needs the record any more."""
    if record.expires_at is None or record.state is State.TOMBSTONE:
        return record.expires_at
    return record.expires_at + 1000 * int(settings.get("tombstone_ttl", 0))
