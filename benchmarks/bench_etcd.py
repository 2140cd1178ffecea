"""What does kvreplay add to etcd's own requests?

Each row is measured in turn with the same requests through the engine's own HTTP client alone, on
members of this machine, which share its cores: etcd's gateway and its log are the largest part of
each. Their files are in memory, so that a flush takes no time of its own.
"""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import pytest

from benchmarks.conftest import Sizes, sizes_of
from benchmarks.measure import Bound, calling, in_threads, in_turn
from benchmarks.workload import (
    FAR,
    NAMESPACE,
    PARAMS,
    RESPONSE,
    SCOPE,
    claimed,
    completed,
    never,
    request_id,
    respond,
)
from kvreplay import AsyncReplay, Replay, open_store
from kvreplay.backends.etcd import EtcdStore, aio_links, links
from kvreplay.backends.etcd.cluster import Attempt
from kvreplay.backends.etcd.operations import Operation
from kvreplay.backends.etcd.requests import Asked

TASKS = 1000
CALLS = 20  # in a round
CONNECTIONS = 10
PATIENCE = 60.0  # seconds for a bare request

Note = Callable[..., None]


@pytest.fixture(scope="module")
def url_of() -> Iterator[Callable[[int], str]]:
    """``url_of(3)`` is a cluster of three members; each is started when it is first needed."""
    from support.etcd import Cluster

    urls: dict[int, str] = {}
    with ExitStack() as clusters:

        def url_of(members: int) -> str:
            if members not in urls:
                cluster = clusters.enter_context(Cluster(members))
                urls[members] = cluster.url("bench", timeout="60s", pool_size=CONNECTIONS)
            return urls[members]

        yield url_of


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "members" in metafunc.fixturenames:
        sizes = [1] if sizes_of(metafunc.config).rounds == 1 else [1, 3]
        only_most = metafunc.function in (test_threads, test_tasks)
        metafunc.parametrize("members", sizes[-1:] if only_most else sizes, ids=named)


@pytest.fixture
def store(url_of: Callable[[int], str], members: int) -> Iterator[EtcdStore]:
    with open_store(url_of(members)) as store:
        assert isinstance(store, EtcdStore)
        yield store


@pytest.fixture
def bare(store: EtcdStore) -> Iterator[Bare]:
    with Bare(store) as bare:
        yield bare


def named(members: int) -> str:
    return f"{members} member" + "s" * (members > 1)


class Bare:
    """The engine's own requests through its HTTP client alone: no answer is decoded."""

    def __init__(self, store: EtcdStore) -> None:
        self.operations = store._operations
        self._member = store._cluster.members[0]
        self._links = ExitStack()

    def __enter__(self) -> Bare:
        return self

    def __exit__(self, *exc: object) -> None:
        self._links.close()

    def attempt(self, operation: Operation[Any]) -> Attempt:
        """The first request of a call of the store."""
        asked: Asked = next(operation)
        return Attempt(0, asked, PATIENCE, PATIENCE, None)

    def read(self, key: str) -> Attempt:
        return self.attempt(self.operations.read(NAMESPACE, SCOPE, key))

    def put(
        self, key: str, expected: bytes | None, value: bytes, expires_at: int | None
    ) -> Attempt:
        names = (NAMESPACE, SCOPE, key)
        return self.attempt(self.operations.check_and_put(*names, expected, value, expires_at))

    def first(self, key: str) -> list[Attempt]:
        """What a first execution asks: read, claim, answer."""
        claim, answer = claimed(0), completed(0, FAR)[1]
        return [
            self.read(key),
            self.put(key, None, claim, None),
            self.put(key, claim, answer, FAR),
        ]

    def connect(self) -> Callable[[Attempt], object]:
        """What makes a request on one connection."""
        link = links.connected(self._member, None, PATIENCE)
        self._links.callback(link.close)

        def ask(attempt: Attempt) -> object:
            status, body = link.ask(attempt, time.monotonic() + PATIENCE)
            assert status == 200, body
            return link.can_go_on()

        return ask

    async def connect_awaited(self) -> Callable[[Attempt], Awaitable[object]]:
        link = await aio_links.connected(self._member, None, PATIENCE)
        self._links.callback(link.close)

        async def ask(attempt: Attempt) -> object:
            status, body = await link.ask(attempt, asyncio.get_running_loop().time() + PATIENCE)
            assert status == 200, body
            return link.can_go_on()

        return ask


class Timed:
    """How long each call of a row took."""

    def __init__(self) -> None:
        self._seconds: list[float] = []

    def of(self, call: Callable[[], object]) -> Callable[[], object]:
        def timed() -> object:
            start = time.perf_counter()
            found = call()
            self._seconds.append(time.perf_counter() - start)
            return found

        return timed

    def of_awaited(self, call: Callable[[], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
        async def timed() -> object:
            start = time.perf_counter()
            found = await call()
            self._seconds.append(time.perf_counter() - start)
            return found

        return timed

    def figures(self) -> dict[str, float]:
        if len(self._seconds) < 2:
            return {}
        parts = statistics.quantiles(self._seconds, n=100)
        return {"p50 µs": parts[49] * 1e6, "p99 µs": parts[98] * 1e6}


def awaiting(
    runner: asyncio.Runner, call: Callable[[], Awaitable[object]], calls: int
) -> Callable[[], float]:
    """The same as ``calling``, on an event loop."""

    async def run() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            await call()
        return (time.perf_counter() - start) / calls

    return lambda: runner.run(run())


def rounds_of(sizes: Sizes) -> int:
    """Many short rounds: what else runs on these cores then disturbs both sides alike."""
    return sizes.rounds * 8 if sizes.rounds > 1 else 1


def note_beside(note: Note, row: str, own: float, bare: float, timed: Timed, bound: Bound) -> None:
    figures = {"µs": own * 1e6, "bare µs": bare * 1e6, "x bare": own / bare}
    note(row, {**figures, **timed.figures(), "bound by": str(bound)})


def test_hit(
    benchmark: Any, note: Note, sizes: Sizes, store: EtcdStore, bare: Bare, members: int
) -> None:
    replay, bound, timed = Replay(store, NAMESPACE, ttl=3600), Bound(), Timed()
    key = (SCOPE, request_id(1))
    replay.execute(key, PARAMS, respond)
    ask, attempt = bare.connect(), bare.read(key[1])
    own, alone = in_turn(
        benchmark,
        bound.of(calling(timed.of(lambda: replay.execute(key, PARAMS, never)), CALLS)),
        calling(lambda: ask(attempt), CALLS),
        rounds=rounds_of(sizes),
    )
    note_beside(note, f"etcd hit/Replay, {named(members)}", own, alone, timed, bound)


def test_awaited_hit(
    benchmark: Any, note: Note, sizes: Sizes, store: EtcdStore, bare: Bare, members: int
) -> None:
    bound, timed = Bound(), Timed()
    replay = AsyncReplay(store, NAMESPACE, ttl=3600, renew=False)
    key = (SCOPE, request_id(1))
    with asyncio.Runner() as runner:
        runner.run(replay.execute(key, PARAMS, respond))
        ask, attempt = runner.run(bare.connect_awaited()), bare.read(key[1])

        def hit() -> Awaitable[object]:
            return replay.execute(key, PARAMS, never)

        own, alone = in_turn(
            benchmark,
            bound.of(awaiting(runner, timed.of_awaited(hit), CALLS)),
            awaiting(runner, lambda: ask(attempt), CALLS),
            rounds=rounds_of(sizes),
        )
    note_beside(note, f"etcd hit/AsyncReplay, {named(members)}", own, alone, timed, bound)


class Swaps:
    """Check-and-puts of one record, by the store or as bare requests: there and back."""

    def __init__(self, store: EtcdStore, bare: Bare, key: str) -> None:
        values = completed(0, FAR)[1], completed(1, FAR)[1]
        store.write(NAMESPACE, SCOPE, key, values[0])
        self._store, self._key, self._values = store, key, values
        there, back = values, values[::-1]
        self._attempts = [bare.put(key, *each, FAR) for each in (there, back)]
        self._made = 0

    def _next(self) -> int:
        self._made += 1
        return (self._made - 1) % 2

    def attempt(self) -> Attempt:
        return self._attempts[self._next()]

    def change(self) -> dict[str, Any]:
        turn = self._next()
        return {
            "expected": self._values[turn],
            "value": self._values[1 - turn],
            "expires_at": FAR,
        }

    def names(self) -> tuple[str, str, str]:
        return NAMESPACE, SCOPE, self._key


def test_check_and_put(
    benchmark: Any, note: Note, sizes: Sizes, store: EtcdStore, bare: Bare, members: int
) -> None:
    bound, timed = Bound(), Timed()
    ours, theirs, ask = Swaps(store, bare, "own"), Swaps(store, bare, "bare"), bare.connect()
    own, alone = in_turn(
        benchmark,
        bound.of(
            calling(timed.of(lambda: store.check_and_put(*ours.names(), **ours.change())), CALLS)
        ),
        calling(lambda: ask(theirs.attempt()), CALLS),
        rounds=rounds_of(sizes),
    )
    note_beside(note, f"etcd check-and-put/blocking, {named(members)}", own, alone, timed, bound)


def test_awaited_check_and_put(
    benchmark: Any, note: Note, sizes: Sizes, store: EtcdStore, bare: Bare, members: int
) -> None:
    bound, timed = Bound(), Timed()
    ours, theirs = Swaps(store, bare, "own"), Swaps(store, bare, "bare")
    with asyncio.Runner() as runner:
        ask = runner.run(bare.connect_awaited())

        def swap() -> Awaitable[object]:
            return store.awaited.check_and_put(*ours.names(), **ours.change())

        own, alone = in_turn(
            benchmark,
            bound.of(awaiting(runner, timed.of_awaited(swap), CALLS)),
            awaiting(runner, lambda: ask(theirs.attempt()), CALLS),
            rounds=rounds_of(sizes),
        )
    note_beside(note, f"etcd check-and-put/awaited, {named(members)}", own, alone, timed, bound)


def test_first_execution(
    benchmark: Any, note: Note, sizes: Sizes, store: EtcdStore, bare: Bare, members: int
) -> None:
    replay, bound, timed = Replay(store, NAMESPACE, ttl=3600), Bound(), Timed()
    numbers = count(10)
    ask = bare.connect()

    def alone() -> None:
        for attempt in bare.first(f"bare-{request_id(next(numbers))}"):
            ask(attempt)

    def first() -> object:
        return replay.execute((SCOPE, request_id(next(numbers))), PARAMS, respond)

    own, theirs = in_turn(
        benchmark,
        bound.of(calling(timed.of(first), CALLS // 2)),
        calling(alone, CALLS // 2),
        rounds=rounds_of(sizes),
    )
    note_beside(note, f"etcd first/one thread, {named(members)}", own, theirs, timed, bound)


@pytest.mark.parametrize("threads", [1, 4, CONNECTIONS])
def test_threads(
    benchmark: Any, note: Note, sizes: Sizes, store: EtcdStore, members: int, threads: int
) -> None:
    """How far one process goes: first executions and replays a second."""
    replay, numbers = Replay(store, NAMESPACE, ttl=3600), count(10**6 * (1 + threads))
    key = (SCOPE, request_id(1))
    replay.execute(key, PARAMS, respond)

    def first() -> object:
        return replay.execute((SCOPE, request_id(next(numbers))), PARAMS, respond)

    own, hits = in_turn(
        benchmark,
        lambda: in_threads(threads, sizes.seconds, first),
        lambda: in_threads(threads, sizes.seconds, lambda: replay.execute(key, PARAMS, never)),
        rounds=min(sizes.rounds, 5),
    )
    note(
        f"etcd threads/{threads}, {named(members)}",
        {"first executions a second": own, "replays a second": hits},
    )


def test_tasks(
    benchmark: Any, note: Note, sizes: Sizes, store: EtcdStore, bare: Bare, members: int
) -> None:
    tasks = TASKS if sizes.rounds > 1 else 50
    with asyncio.Runner() as runner:
        figures = runner.run(_tasks(store, bare, tasks, min(sizes.rounds, 5)))
        runner.run(store.awaited.close())
    benchmark.pedantic(lambda: None, rounds=1)  # its rounds were made on the loop
    note(f"etcd tasks/AsyncReplay, {tasks} tasks, {named(members)}", figures)


async def _tasks(store: EtcdStore, bare: Bare, tasks: int, rounds: int) -> dict[str, float]:
    numbers = count(10**9)
    replay = AsyncReplay(store, NAMESPACE, ttl=3600, renew=False)
    before = threading.active_count()
    idle = [await bare.connect_awaited() for _ in range(CONNECTIONS)]
    room = asyncio.Semaphore(CONNECTIONS)

    async def respond_soon() -> dict[str, str]:
        return RESPONSE

    async def first() -> object:
        return await replay.execute((SCOPE, request_id(next(numbers))), PARAMS, respond_soon)

    async def alone() -> None:
        for attempt in bare.first(f"bare-{request_id(next(numbers))}"):
            async with room:
                ask = idle.pop()
                await ask(attempt)
                idle.append(ask)

    async def round_of(call: Callable[[], Awaitable[object]]) -> float:
        start = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(tasks)))
        return tasks / (time.perf_counter() - start)

    figures: dict[str, list[float]] = {"own": [], "bare": []}
    for turn in range(rounds + (rounds > 1)):
        for name, call in (("own", first), ("bare", alone)):
            figure = await round_of(call)
            if turn or rounds == 1:  # the first of several warms up
                figures[name].append(figure)
    own, theirs = (statistics.median(each) for each in figures.values())
    return {
        "executions a second": own,
        "bare client": theirs,
        "x bare client": own / theirs,
        "threads more": threading.active_count() - before,
    }
