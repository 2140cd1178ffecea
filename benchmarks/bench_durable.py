"""How many first executions reach the disk in a second, and how many commits does each take?

The rival is raw py-lmdb with one transaction for each write: the same threads make the same two
writes, the bytes of a claim, and those of a record, with their places in the indexes. The raw
writes of tasks run in asyncio's own thread pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Final

import lmdb
import pytest

from benchmarks.conftest import Sizes
from benchmarks.measure import Bound, calling, commits_of, in_tasks, in_threads, in_turn
from benchmarks.workload import (
    FAR,
    NAMESPACE,
    PARAMS,
    SCOPE,
    claimed,
    completed,
    request_id,
    respond,
    url_of,
)
from kvreplay import AsyncReplay, Replay, open_store

ENGINES: Final = ["lmdb", "sqlite", "filesystem", "memory"]
ROUNDS: Final = 3
CLAIM, RECORD = claimed(0), completed(0, FAR)[1]

Note = Callable[..., None]
Put = Callable[..., None]

_PRIMARY: Final = NAMESPACE.encode() + b"\0"
_SECONDARY: Final = SCOPE.encode() + b"\0"
_DIGEST: Final = bytes(16)  # what the store puts here tells its namespaces apart


@pytest.fixture
def put(folder: Path) -> Iterator[Put]:
    """Raw durable writes of one new key, a transaction each: a claim's bytes, and a record's.

    The bytes are those of the store (``docs/format.md``), even those of its two indexes.
    """
    env = lmdb.open(str(folder / "raw"), map_size=16 << 30, max_dbs=4, lib_version=0)
    entries, expiry = env.open_db(b"entries"), env.open_db(b"expiry")
    created, meta = env.open_db(b"created"), env.open_db(b"meta")
    numbers = count()

    def put(*, claim: bool, indexed: bool = True) -> None:
        number = next(numbers)
        rest = _SECONDARY + request_id(number).encode()
        key, creation = _PRIMARY + rest, number.to_bytes(8, "big")
        identity = creation + bytes(8)

        def create(txn: lmdb.Transaction, value: bytes) -> None:
            txn.put(key, value, db=entries)
            if indexed:
                txn.put(_DIGEST + creation, request_id(number).encode(), db=created)
                txn.put(b"created", creation, db=meta)

        if claim:
            with env.begin(write=True) as txn:
                create(txn, bytes(8) + identity + CLAIM)
        with env.begin(write=True) as txn:
            stamp = (FAR + number).to_bytes(8, "big")
            if claim:
                txn.put(key, stamp + identity + RECORD, db=entries)
            else:
                create(txn, stamp + identity + RECORD)
            if indexed:
                txn.put(_PRIMARY + stamp + rest, b"", db=expiry)

    yield put
    env.close()


@pytest.fixture
def put_together(folder: Path) -> Iterator[Callable[[], None]]:
    """Make the two raw writes of :func:`put` by a thread that commits all that wait at once.

    It leaves out the index of creations: the least that such a thread could do.
    """
    env = lmdb.open(str(folder / "together"), map_size=16 << 30, max_dbs=2, lib_version=0)
    entries, expiry = env.open_db(b"entries"), env.open_db(b"expiry")
    numbers = count()
    waiting: SimpleQueue[tuple[Any, Lock] | None] = SimpleQueue()

    def write() -> None:
        while (first := waiting.get()) is not None:
            landed = []
            with env.begin(write=True) as txn:
                pending: tuple[Any, Lock] | None = first
                while pending is not None:
                    writes, bell = pending
                    for db, key, value in writes:
                        txn.put(key, value, db=db)
                    landed.append(bell)
                    pending = None if waiting.empty() else waiting.get()
            for bell in landed:
                bell.release()

    def submit(*writes: tuple[Any, bytes, bytes]) -> None:
        bell = Lock()
        bell.acquire()
        waiting.put((writes, bell))
        bell.acquire()

    def put() -> None:
        number = next(numbers)
        rest = _SECONDARY + request_id(number).encode()
        key, stamp = _PRIMARY + rest, (FAR + number).to_bytes(8, "big")
        identity = number.to_bytes(8, "big") + bytes(8)
        submit((entries, key, bytes(8) + identity + CLAIM))
        submit((entries, key, stamp + identity + RECORD), (expiry, _PRIMARY + stamp + rest, b""))

    writer = Thread(target=write)
    writer.start()
    yield put
    waiting.put(None)
    writer.join()
    env.close()


def figures_of(
    rate: float, raw: float, commits: int | None, executions: int, bound: Bound
) -> dict[str, float | int | str]:
    figures: dict[str, float | int | str] = {
        "executions/s": rate,
        "raw executions/s": raw,
        "x raw": rate / raw,
    }
    if commits is not None:
        # Two changes an execution: the claim and the record.
        figures |= {"changes": 2 * executions, "commits": commits}
        figures["mean batch"] = 2 * executions / commits
    return {**figures, "bound by": str(bound)}


def lmdb_commits(engine: str, folder: Path) -> int | None:
    return commits_of(folder / "store") if engine == "lmdb" else None


@pytest.mark.parametrize("threads", [1, 16, 64, 256])
@pytest.mark.parametrize("engine", ENGINES)
def test_threads(
    benchmark: Any,
    note: Note,
    sizes: Sizes,
    put: Put,
    engine: str,
    threads: int,
    folder: Path,
) -> None:
    with open_store(url_of(engine, folder)) as store:
        replay = Replay(store, NAMESPACE, ttl=3600)
        numbers, bound = count(), Bound("flush")

        def execute() -> None:
            replay.execute((SCOPE, request_id(next(numbers))), PARAMS, respond)

        before = lmdb_commits(engine, folder)
        rate, raw = in_turn(
            benchmark,
            bound.of(lambda: in_threads(threads, sizes.seconds, execute)),
            lambda: in_threads(threads, sizes.seconds, partial(put, claim=True)),
            rounds=min(ROUNDS, sizes.rounds),
        )
        after = lmdb_commits(engine, folder)
    commits = after - before if after is not None and before is not None else None
    who = "1 thread" if threads == 1 else f"{threads} threads"
    note(f"durable/{engine}, {who}", figures_of(rate, raw, commits, next(numbers), bound))


def test_writer_thread(
    benchmark: Any, note: Note, sizes: Sizes, put_together: Callable[[], None], folder: Path
) -> None:
    """64 threads on LMDB beside 64 whose raw writes a thread of their own commits together."""
    with open_store(url_of("lmdb", folder)) as store:
        replay = Replay(store, NAMESPACE, ttl=3600)
        numbers, bound = count(), Bound("flush")
        rate, raw = in_turn(
            benchmark,
            bound.of(lambda: in_threads(64, sizes.seconds, lambda: execute(replay, next(numbers)))),
            lambda: in_threads(64, sizes.seconds, put_together),
            rounds=min(ROUNDS, sizes.rounds),
        )
    figures = figures_of(rate, raw, None, next(numbers), bound)
    note("durable/lmdb beside a writer thread, 64 threads", figures)


@pytest.mark.parametrize(("engine", "threads"), [("memory", 64), ("filesystem", 16)])
def test_beside_one_thread(
    benchmark: Any, note: Note, sizes: Sizes, folder: Path, engine: str, threads: int
) -> None:
    """What it costs, or gains, to be a crowd: on the file system they share a folder's flushes."""
    bound = Bound()
    with open_store(url_of(engine, folder)) as store:
        replay = Replay(store, NAMESPACE, ttl=3600)
        numbers = count()

        def work() -> None:
            execute(replay, next(numbers))

        rate, one = in_turn(
            benchmark,
            bound.of(lambda: in_threads(threads, sizes.seconds / 2, work)),
            lambda: in_threads(1, sizes.seconds / 2, work),
            rounds=min(9, sizes.rounds),
        )
    figures = {"executions/s": rate, "one thread's": one, "x one thread's": rate / one}
    note(f"crowd/{engine}, {threads} threads", {**figures, "bound by": str(bound)})


@pytest.mark.parametrize("engine", ENGINES)
def test_tasks(
    benchmark: Any, note: Note, sizes: Sizes, put: Put, engine: str, folder: Path
) -> None:
    tasks = 1000
    with open_store(url_of(engine, folder)) as store:
        replay = AsyncReplay(store, NAMESPACE, ttl=3600)
        numbers, bound = count(), Bound("flush")

        async def execute() -> None:
            await replay.execute((SCOPE, request_id(next(numbers))), PARAMS, respond)

        async def write_twice() -> None:
            await asyncio.to_thread(put, claim=True)

        before = lmdb_commits(engine, folder)
        rate, raw = in_turn(
            benchmark,
            bound.of(lambda: in_tasks(tasks, sizes.seconds, execute)),
            lambda: in_tasks(tasks, sizes.seconds, write_twice),
            rounds=min(ROUNDS, sizes.rounds),
        )
        after = lmdb_commits(engine, folder)
    commits = after - before if after is not None and before is not None else None
    note(f"durable/{engine}, {tasks} tasks", figures_of(rate, raw, commits, next(numbers), bound))


def execute(replay: Replay, number: int) -> None:
    replay.execute((SCOPE, request_id(number)), PARAMS, respond)


def execute_in_transaction(replay: Replay, number: int) -> None:
    replay.execute_in_transaction((SCOPE, request_id(number)), PARAMS, respond)


@pytest.mark.parametrize(
    ("mode", "lease", "execute", "claim"),
    [
        ("with a claim", 30.0, execute, True),
        ("lease=None", None, execute, False),
        ("in a transaction", 30.0, execute_in_transaction, False),
    ],
)
def test_first_execution(
    benchmark: Any,
    note: Note,
    sizes: Sizes,
    put: Put,
    disk: dict[str, Any],
    mode: str,
    lease: float | None,
    execute: Callable[[Replay, int], None],
    claim: bool,
    folder: Path,
) -> None:
    """One thread: its commits, and its time beside as many raw durable commits as it makes."""
    # A round takes about a tenth of a second on any disk.
    calls = min(sizes.calls, max(10, int(20 / disk["flush ms"])))
    with open_store(url_of("lmdb", folder)) as store:
        replay = Replay(store, NAMESPACE, ttl=3600, lease=lease)
        numbers, bound = count(), Bound("flush")
        before = commits_of(folder / "store")
        seconds, raw, without_index = in_turn(
            benchmark,
            bound.of(calling(lambda: execute(replay, next(numbers)), calls)),
            calling(partial(put, claim=claim), calls),
            calling(partial(put, claim=claim, indexed=False), calls),
            rounds=min(15, sizes.rounds),
        )
        commits = commits_of(folder / "store") - before
    note(
        f"first execution/{mode}",
        {
            "commits each": commits / next(numbers),
            "ms": seconds * 1000,
            "raw commits ms": raw * 1000,
            "x raw commits": seconds / raw,
            "without an index ms": without_index * 1000,
            "bound by": str(bound),
        },
    )
