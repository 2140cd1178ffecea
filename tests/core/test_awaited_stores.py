"""``AsyncReplay`` on stores whose calls are awaited: no thread, and the same guarantees."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvreplay import (
    AsyncReplay,
    ClaimLostError,
    ConfigError,
    InDoubtError,
    InProcessAtomicStore,
    KeyNotFoundError,
    NotAppliedError,
    Replay,
)
from kvreplay._runtime.singleflight import flights
from kvreplay.backends.memory import MemoryStore
from kvreplay.store import Entry
from kvreplay.testing import FaultyStore, ManualClock
from support.awaited_stores import Awaited, AwaitedStore, WithTwin
from support.plain_stores import WalkableStore
from support.replaying import Handler, Held, replay_on
from support.requesting import KEY, PARAMS


def with_a_twin() -> Any:
    return WithTwin(MemoryStore())


def walked() -> Any:
    """One without an index of expiry."""
    return WithTwin(InProcessAtomicStore(WalkableStore()))


each_store = pytest.mark.parametrize("opens", [AwaitedStore, with_a_twin, walked])


def our_threads() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name.startswith("kvreplay-")}


# Without threads.


async def everything(store: Any) -> None:
    """Make every call of an ``AsyncReplay`` on a store but its transactions."""
    clock = ManualClock()
    replay = replay_on(store, clock=clock, renew=True)
    for replayed in (False, True):
        outcome = await replay.execute(KEY, PARAMS, Handler("r"))
        assert (outcome.response, outcome.replayed) == ("r", replayed)
    found = await replay.lookup(KEY, PARAMS)
    assert found is not None
    assert found.response == "r"
    for number in range(3):
        with pytest.raises(InDoubtError):
            await replay.execute(("s", str(number)), PARAMS, Handler(TimeoutError()))
    doubtful = [record async for record in replay.records(in_doubt=True)]
    assert sorted(record.key.id for record in doubtful) == ["0", "1", "2"]
    assert await replay.is_in_doubt(doubtful[0])
    assert await replay.resolve(("s", "0"), response="found")
    assert await replay.release(("s", "1"))
    assert await replay.forget(("s", "0"))
    assert await replay.record(("s", "0")) is None
    assert (await replay.record(("s", "2"))) is not None
    with pytest.raises(ValueError, match="declined"):
        await replay.execute(("s", "3"), PARAMS, Handler(ValueError("declined")))
    clock.advance(60)
    async with replay.sweeping(every=60):
        while await replay.record(KEY) is not None:
            await asyncio.sleep(0)
    assert [record.key.id async for record in replay.records()] == ["2"]


@each_store
def test_no_thread_is_started(opens: Callable[[], Any]) -> None:
    before = our_threads()
    asyncio.run(everything(opens()))
    assert our_threads() <= before


def test_a_store_with_blocking_calls_alone_has_them_in_threads() -> None:
    before = our_threads()
    asyncio.run(everything(InProcessAtomicStore(WalkableStore())))
    assert our_threads() - before


# One handler for a key.


class CountsReads(AwaitedStore):
    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    async def read_entry(self, primary_namespace: str, secondary_namespace: str, key: str) -> Entry:
        self.reads += 1
        return await super().read_entry(primary_namespace, secondary_namespace, key)


@pytest.mark.parametrize("settings", [{}, {"params_key": b"k" * 32}])
def test_a_hit_is_one_read_in_the_callers_own_task(settings: Any) -> None:
    """A first request has a task of its own, since cancelling its caller must not cancel it."""

    async def main() -> list[tuple[int, int]]:
        store, started = CountsReads(), 0

        def starting(loop: Any, coroutine: Any, **more: Any) -> asyncio.Task[Any]:
            nonlocal started
            started += 1
            return asyncio.Task(coroutine, loop=loop, **more)

        asyncio.get_running_loop().set_task_factory(starting)
        counts = []
        for _ in range(2):
            started = store.reads = 0
            await replay_on(store, **settings).execute(KEY, PARAMS, Handler("r"))
            counts.append((store.reads, started))
        return counts

    assert asyncio.run(main()) == [(1, 1), (1, 0)]


def test_a_crowd_of_hits_reads_twice() -> None:
    """Who comes first looks, the next is in flight, and the others follow that one."""

    async def main() -> tuple[int, set[Any]]:
        store = CountsReads()
        replay = replay_on(store)
        await replay.execute(KEY, PARAMS, Handler("r"))
        store.reads = 0
        crowd = (replay.execute(KEY, PARAMS, Handler("never")) for _ in range(100))
        outcomes = await asyncio.gather(*crowd)
        return store.reads, {(outcome.response, outcome.replayed) for outcome in outcomes}

    assert asyncio.run(main()) == (2, {("r", True)})


def test_who_follows_a_run_reads_nothing() -> None:
    async def main() -> tuple[int, set[Any]]:
        store, handler = CountsReads(), Held("r")
        replay = replay_on(store)
        leading = asyncio.create_task(replay.execute(KEY, PARAMS, handler))
        await handler.started.wait()
        store.reads = 0
        following = [
            asyncio.create_task(replay.execute(KEY, PARAMS, Handler("never"))) for _ in range(9)
        ]
        await asyncio.sleep(0)
        handler.go.set()
        outcomes = await asyncio.gather(leading, *following)
        return store.reads, {outcome.response for outcome in outcomes}

    assert asyncio.run(main()) == (0, {"r"})


@each_store
def test_a_thousand_tasks_of_few_keys(opens: Callable[[], Any]) -> None:
    store, runs = opens(), dict.fromkeys(range(7), 0)

    async def main() -> None:
        replays = replay_on(store), replay_on(store)

        async def ask(n: int) -> Any:
            async def handler() -> int:
                runs[n % 7] += 1
                await asyncio.sleep(0)
                return n % 7

            return await replays[n % 2].execute(("s", str(n % 7)), PARAMS, handler)

        outcomes = await asyncio.gather(*map(ask, range(1000)))
        assert [outcome.response for outcome in outcomes] == [n % 7 for n in range(1000)]
        assert [outcome.replayed for outcome in outcomes].count(False) == 7

    asyncio.run(main())
    assert set(runs.values()) == {1}


def test_several_loops_share_the_store() -> None:
    """Each is another owner to the store: only check-and-puts decide."""
    store, runs, start = AwaitedStore(), [], threading.Barrier(4)

    async def ask(number: int) -> None:
        replay = AsyncReplay(store, f"ns{number % 2}", ttl=60, wait_timeout=30)
        for n in range(20):
            handler = functools.partial(runs.append, n)
            outcome = await replay.execute(("s", str(n)), PARAMS, handler)
            assert outcome.response is None

    def loop(number: int) -> None:
        start.wait(30)
        asyncio.run(ask(number))

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(runs) == sorted([*range(20), *range(20)])


def test_a_blocking_replay_shares_the_flight_and_the_answer() -> None:
    store = with_a_twin()

    async def main() -> None:
        handler = Held("r")
        leader = asyncio.create_task(replay_on(store).execute(KEY, PARAMS, handler))
        await handler.started.wait()
        blocking = Replay(store, "ns", ttl=60)
        follower = asyncio.create_task(
            asyncio.to_thread(blocking.execute, KEY, PARAMS, Handler("never"))
        )
        (flight,) = flights.table.values()
        while not flight.wakers:
            await asyncio.sleep(0)
        handler.go.set()
        assert (await follower).response == (await leader).response == "r"

    asyncio.run(main())


# Renewal, and what a store says of itself.


class SpansMachines(AwaitedStore):
    spans_machines = True


async def claim_of(store: Any) -> Any:
    (record,) = [record async for record in replay_on(store).records()]
    return record.claim


@pytest.mark.parametrize(
    ("opens", "settings"), [(SpansMachines, {}), (AwaitedStore, {"renew": True})]
)
def test_a_lease_is_renewed(opens: Any, settings: Any) -> None:
    async def main() -> None:
        store, handler, clock = opens(), Held(), ManualClock()
        replay = replay_on(store, lease=0.03, clock=clock, **settings)
        caller = asyncio.create_task(replay.execute(KEY, PARAMS, handler))
        await handler.started.wait()
        before = await claim_of(store)
        clock.advance(1)
        while (await claim_of(store)) == before:
            await asyncio.sleep(0)
        handler.go.set()
        assert (await caller).response == "r"

    asyncio.run(main())


@pytest.mark.parametrize("face", [Replay, AsyncReplay])
def test_leases_are_renewed_by_default_where_machines_share_the_store(face: Any) -> None:
    def renews(store: Any, **settings: Any) -> Any:
        return face(store, "ns", ttl=60, **settings)._settings.renew

    here, everywhere = MemoryStore(), WithTwin(MemoryStore())
    everywhere.spans_machines = True
    assert renews(everywhere) is True
    assert renews(everywhere, renew=False) is False
    assert renews(everywhere, lease=None) is False
    assert renews(here) is False
    assert renews(here, renew=True) is True


@pytest.mark.parametrize("opens", [MemoryStore, AwaitedStore])
def test_renew_without_a_lease(opens: Any) -> None:
    store = opens()
    store.spans_machines = True
    with pytest.raises(ConfigError, match="lease"):
        replay_on(store, lease=None, renew=True)
    outcome = replay_on(store, lease=None).execute(KEY, PARAMS, Handler("r"))
    assert asyncio.run(outcome).response == "r"


@pytest.mark.parametrize("opens", [AwaitedStore, with_a_twin])
def test_the_stores_own_clock_is_the_default(opens: Any) -> None:
    async def main() -> None:
        store = opens()
        store.clock = ManualClock(5_000_000)
        outcome = await replay_on(store).execute(KEY, PARAMS, Handler("r"))
        assert (outcome.created_at, outcome.expires_at) == (5_000_000, 5_060_000)
        other = replay_on(store, clock=ManualClock(7_000_000))
        assert (await other.execute(("s", "2"), PARAMS, Handler("r"))).created_at == 7_000_000

    asyncio.run(main())


def test_a_blocking_replay_goes_by_the_stores_clock_too() -> None:
    store: Any = MemoryStore()
    store.clock = ManualClock(5_000_000)
    assert Replay(store, "ns", ttl=60).execute(KEY, PARAMS, Handler("r")).created_at == 5_000_000


# What is no such store.


def test_a_blocking_replay_takes_no_asynchronous_store() -> None:
    store: Any = AwaitedStore()
    with pytest.raises(ConfigError, match="use AsyncReplay"):
        Replay(store, "ns", ttl=60)
    assert Replay(with_a_twin(), "ns", ttl=60).execute(KEY, PARAMS, Handler("r")).response == "r"


class Less(AwaitedStore):
    check_and_put = None  # type: ignore[assignment]


def test_a_store_or_a_twin_that_lacks_a_method() -> None:
    with pytest.raises(ConfigError, match="AsyncAtomicKVStore, and Less has no check_and_put"):
        replay_on(Less())
    store = with_a_twin()
    store.awaited = Less()
    with pytest.raises(ConfigError, match="awaited WithTwin .* has no check_and_put"):
        replay_on(store)
    with pytest.raises(ConfigError, match="AsyncTransactionalKVStore, and Awaited has no transac"):
        asyncio.run(
            replay_on(Awaited(MemoryStore())).execute_in_transaction(KEY, PARAMS, Handler("r"))
        )


def test_a_wrapper_is_asked_although_the_store_in_it_has_a_twin() -> None:
    class Counting:
        """A store of somebody else's, which must see each change: to encrypt it, say."""

        check_and_put_each = check_and_put_at_once = None

        def __init__(self, inner: Any) -> None:
            self._inner = inner
            self.changes = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def check_and_put(self, *address: str, **change: Any) -> Any:
            self.changes += 1
            return self._inner.check_and_put(*address, **change)

    store = Counting(WithTwin(MemoryStore()))
    assert store.awaited is not None
    replay = AsyncReplay(store, "ns", ttl=60)
    asyncio.run(replay.execute(("s", "k"), {}, lambda: "r"))
    assert store.changes == 2


def test_faults_are_met_although_the_store_has_a_twin() -> None:
    store = FaultyStore(with_a_twin())
    store.fail(NotAppliedError("full"))
    with pytest.raises(NotAppliedError, match="full"):
        asyncio.run(replay_on(store).execute(KEY, PARAMS, Handler("r")))
    assert store.faults_left == 0


# Sweeping by a walk, which one loop begins and another one may end.


def test_a_round_of_walks_goes_on_in_another_loop() -> None:
    store, clock = walked(), ManualClock()
    replay = replay_on(store, clock=clock)

    async def fill() -> None:
        for n in range(10):
            ttl = 3600 if n % 3 == 0 else 60
            await replay.execute(("s", str(n)), PARAMS, Handler("r"), ttl=ttl)

    asyncio.run(fill())
    clock.advance(60)
    swept = [asyncio.run(replay.sweep(3)) for _ in range(4)]
    assert [each.visited for each in swept] == [3, 3, 3, 1]
    assert [each.more for each in swept] == [True, True, True, False]
    assert sum(each.removed for each in swept) == 6

    async def again() -> None:
        swept = [await replay.sweep(3) for _ in range(2)]
        assert [(each.visited, each.removed, each.more) for each in swept] == [
            (3, 0, True),
            (1, 0, False),
        ]

    asyncio.run(again())


# Transactions.


async def read(store: Any, key: str) -> bytes | None:
    try:
        found: bytes = await store.read("ledger", "", key)
    except KeyNotFoundError:
        return None
    return found


def test_a_coroutine_function_in_an_awaited_transaction() -> None:
    async def main() -> None:
        store, runs = AwaitedStore(), []

        async def pay(txn: Any) -> str:
            runs.append(1)
            await asyncio.sleep(0)
            await txn.write("ledger", "", "a", b"paid")
            assert await txn.read("ledger", "", "a") == b"paid"
            assert await read(store, "a") is None
            return "receipt"

        replay = replay_on(store)
        asked = [replay.execute_in_transaction(KEY, PARAMS, pay) for _ in range(20)]
        outcomes = await asyncio.gather(*asked)
        assert {outcome.response for outcome in outcomes} == {"receipt"}
        assert len(runs) == 1
        assert await read(store, "a") == b"paid"
        before = our_threads()
        plain = await replay.execute_in_transaction(("s", "2"), PARAMS, lambda txn: "plain")
        assert plain.response == "plain"
        assert our_threads() <= before

    asyncio.run(main())


class Frozen(Exception):
    """No block can put a traceback on it, or a cause."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


@pytest.mark.parametrize("error", [ValueError("declined"), TimeoutError(), Frozen("declined")])
def test_an_awaited_transaction_whose_handler_raises_is_undone(error: Exception) -> None:
    async def main() -> None:
        store, seen = AwaitedStore(), []
        replay = replay_on(store, on_event=lambda event: seen.append(event.kind))

        def pay(txn: Any) -> None:
            raise error

        async def pay_later(txn: Any) -> None:
            await txn.write("ledger", "", "a", b"paid")
            raise error

        for handler in (pay, pay_later):
            with pytest.raises(type(error)):
                await replay.execute_in_transaction(KEY, PARAMS, handler)
        assert store.entries == {}
        assert seen == ["started", "released"] * 2

    asyncio.run(main())


def test_a_final_failure_in_an_awaited_transaction_is_stored() -> None:
    async def main() -> None:
        store = AwaitedStore()
        replay, runs = replay_on(store, store_errors=(ValueError,)), []

        async def pay(txn: Any) -> None:
            runs.append(1)
            await txn.write("ledger", "", "a", b"paid")
            raise ValueError("declined")

        for _ in range(2):
            with pytest.raises(ValueError, match="declined"):
                await replay.execute_in_transaction(KEY, PARAMS, pay)
        assert len(runs) == 1
        assert await read(store, "a") is None

    asyncio.run(main())


def test_on_a_store_with_blocking_calls_a_transaction_has_a_thread() -> None:
    async def main() -> None:
        store, threads = with_a_twin(), []

        def pay(txn: Any) -> str:
            threads.append(threading.get_ident())
            txn.write("ledger", "", "a", b"paid")
            return "receipt"

        async def pay_later(txn: Any) -> None:
            raise AssertionError("nobody awaits it")

        replay = replay_on(store)
        for _ in range(2):
            outcome = await replay.execute_in_transaction(KEY, PARAMS, pay)
            assert outcome.response == "receipt"
        with pytest.raises(ConfigError, match="plain function"):
            await replay.execute_in_transaction(("s", "2"), PARAMS, pay_later)
        assert store.read("ledger", "", "a") == b"paid"
        assert len(threads) == 1
        assert threads[0] != threading.get_ident()

    asyncio.run(main())


# Cancelled at every point at which a call waits: before it did something, and after that.


class CancelsAt(AwaitedStore):
    """Cancels the task that comes to a point, as the end of a loop does."""

    def __init__(self, point: int) -> None:
        super().__init__()
        self.left = point

    async def pause(self) -> None:
        self.left -= 1
        if self.left == 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        await super().pause()


def points() -> Iterator[int]:
    """1, 2, 3, and so on; a test ends when it has gone past the last."""
    yield from range(1, 200)


@pytest.mark.parametrize("lease", [30, None])
def test_a_run_that_is_cancelled_at_each_point(lease: float | None) -> None:
    ends: list[str] = []
    for point in points():
        store, handler = CancelsAt(point), Handler("r")

        async def main(store: CancelsAt = store, handler: Handler = handler) -> str:
            replay = replay_on(store, lease=lease)
            try:
                await replay.execute(KEY, PARAMS, handler)
            except asyncio.CancelledError:
                pass
            else:
                return "never cancelled"
            if handler.runs == 0:
                assert store.entries == {}, "the key is free"
            try:
                again = await replay.execute(KEY, PARAMS, Handler("again"))
            except InDoubtError:
                assert handler.runs == 1
                record = await replay.record(KEY)
                assert record is not None
                assert record.claim is not None
                assert record.claim.ended_at is not None, "other processes see it at once"
                return "in doubt"
            if lease is not None:
                assert handler.runs == again.replayed
            return "answered" if again.replayed else "free"

        ends.append(asyncio.run(main()))
        if store.left > 0:
            break
    assert ends[-1] == "never cancelled"
    expected = {"free", "answered", "in doubt"} if lease else {"free", "answered"}
    assert set(ends[:-1]) == expected


def test_a_transaction_that_is_cancelled_at_each_point() -> None:
    ends: list[str] = []
    for point in points():
        store = CancelsAt(point)

        async def main(store: CancelsAt = store) -> str:
            async def pay(txn: Any) -> str:
                await txn.write("ledger", "", "a", b"paid")
                await store.pause()
                return "r"

            replay = replay_on(store)
            try:
                await replay.execute_in_transaction(KEY, PARAMS, pay)
            except asyncio.CancelledError:
                pass
            else:
                return "never cancelled"
            paid = await read(store, "a")
            again = await replay.execute_in_transaction(KEY, PARAMS, pay)
            assert again.replayed == (paid is not None)
            return "committed" if again.replayed else "undone"

        ends.append(asyncio.run(main()))
        if store.left > 0:
            break
    assert ends[-1] == "never cancelled"
    assert set(ends[:-1]) == {"undone", "committed"}


def test_a_settling_that_is_cancelled_at_each_point() -> None:
    """It is done or not, and can be made again."""
    for point in points():
        store = CancelsAt(0)

        async def main(store: CancelsAt = store, point: int = point) -> bool:
            replay = replay_on(store)
            with pytest.raises(InDoubtError):
                await replay.execute(KEY, PARAMS, Handler(TimeoutError()))
            store.left = point
            try:
                await replay.resolve(KEY, response="found")
                return True
            except asyncio.CancelledError:
                pass
            store.left = 0
            await replay.resolve(KEY, response="found")
            outcome = await replay.execute(KEY, PARAMS, Handler("never"))
            assert outcome.response == "found"
            return False

        if asyncio.run(main()):
            break
    assert point > 4


def test_a_cancelled_caller_cancels_no_change_of_the_store() -> None:
    async def main() -> None:
        store, handler = AwaitedStore(), Handler("r")
        caller = asyncio.create_task(replay_on(store).execute(KEY, PARAMS, handler))
        while not store.entries:  # the claim's put has not come back yet
            await asyncio.sleep(0)
        assert not handler.runs
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        outcome = await replay_on(store).execute(KEY, PARAMS, Handler("never"))
        assert (outcome.response, handler.runs) == ("r", 1)

    asyncio.run(main())


def test_who_was_taken_over_is_fenced() -> None:
    async def main() -> None:
        store, handler, clock = AwaitedStore(), Held("late"), ManualClock()
        replay = replay_on(store, clock=clock)
        late = asyncio.create_task(replay.execute(KEY, PARAMS, handler))
        await handler.started.wait()
        (address,) = store.entries
        await store.write(*address, b"another owner's")
        handler.go.set()
        with pytest.raises(ClaimLostError):
            await late
        assert await store.read(*address) == b"another owner's"

    asyncio.run(main())
