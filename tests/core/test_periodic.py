"""What runs beside the requests, when asked for: the sweeper and the renewer."""

from __future__ import annotations

import _thread
import asyncio
import logging
import threading
from typing import Any

import pytest

from kvreplay import AsyncReplay, ConfigError, InFlightError, Replay, StoreUnavailableError
from kvreplay._protocol.record import decode
from kvreplay._runtime.aio_sweeping import AsyncSweeper
from kvreplay._runtime.sweeping import Sweeper
from support.engines import SHARED
from support.replaying import START, Caller, FakeClock, Handler, OneByOne
from support.waiting import until

KEY = ("lsp", "session")
PARAMS = {"amount": 1}


def has_renewer(replay: Replay) -> bool:
    """Whether a thread renews claims."""
    assert replay._renewing is not None
    return replay._renewing._round.has_thread


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


class Flaky:
    """The real store, whose next calls of one method fail once for each error in ``errors``."""

    def __init__(self, inner: Any, method: str, *errors: Exception) -> None:
        self._inner, self._method, self.errors = inner, method, list(errors)
        self.failed = threading.Event()

    def __getattr__(self, name: str) -> Any:
        own = getattr(self._inner, name)
        if name != self._method:
            return own

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.errors:
                self.failed.set()
                raise self.errors.pop(0)
            return own(*args, **kwargs)

        return call


class Watcher:
    """An observer that lets a test wait for the n-th event of a kind."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self._more = threading.Condition()

    def __call__(self, event: Any) -> None:
        with self._more:
            self.events.append(event)
            self._more.notify_all()

    def wait_for(self, kind: str, count: int) -> None:
        with self._more:
            assert self._more.wait_for(
                lambda: sum(event.kind == kind for event in self.events) >= count, 30
            )


def test_a_sweeper_sweeps_all_that_is_due_and_ends_with_its_block(store: Any) -> None:
    clock, watcher = FakeClock(), Watcher()
    replay = Replay(store, "ns", ttl=60, clock=clock, on_event=watcher)
    for number in range(5):
        replay.execute(("s", str(number)), PARAMS, Handler(number))
    clock.pass_seconds(60)
    with replay.sweeping(every=0.01, limit=2) as sweeper:
        assert isinstance(sweeper, Sweeper)
        watcher.wait_for("swept", 3)
        (thread,) = threads("kvreplay-sweeper")
        assert thread.daemon, "a block that is never left must not keep the process alive"
    assert not threads("kvreplay-sweeper")
    swept = [event.swept for event in watcher.events if event.kind == "swept"]
    assert [each.removed for each in swept] == [2, 2, 1], "only what has removed something"
    assert store.list("ns", "s") == []


def test_an_async_sweeper_does_the_same(store: Any) -> None:
    clock, watcher = FakeClock(), Watcher()

    async def main() -> None:
        replay = AsyncReplay(store, "ns", ttl=60, clock=clock, on_event=watcher)
        for number in range(5):
            await replay.execute(("s", str(number)), PARAMS, Handler(number))
        clock.pass_seconds(60)
        before = asyncio.all_tasks()  # those of a driver's pool too
        async with replay.sweeping(every=0.01, limit=2) as sweeper:
            assert isinstance(sweeper, AsyncSweeper)
            await asyncio.to_thread(watcher.wait_for, "swept", 3)
        assert asyncio.all_tasks() <= before

    asyncio.run(main())
    assert store.list("ns", "s") == []


def test_a_failing_store_does_not_end_the_sweeper(
    store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "kvreplay")
    for face in (Replay, AsyncReplay):
        watcher = Watcher()
        Replay(store, "ns", ttl=0).execute(("s", "due"), PARAMS, Handler("r"))
        flaky = Flaky(store, "sweep", StoreUnavailableError("busy"))
        replay: Any = face(flaky, "ns", ttl=60, on_event=watcher)
        if face is Replay:
            with replay.sweeping(every=0.01):
                watcher.wait_for("swept", 1)
        else:

            async def main(replay: Any = replay, watcher: Watcher = watcher) -> None:
                async with replay.sweeping(every=0.01):
                    await asyncio.to_thread(watcher.wait_for, "swept", 1)

            asyncio.run(main())
        assert flaky.errors == []
    assert caplog.text.count("busy") == 2


def test_a_sweeper_needs_an_interval(store: Any) -> None:
    with pytest.raises(ConfigError, match="every"), Replay(store, "ns", ttl=1).sweeping(every=0):
        pass


@pytest.mark.parametrize("sweeper", [Sweeper, AsyncSweeper])
def test_an_interval_is_given_in_milliseconds(sweeper: Any) -> None:
    assert sweeper(None, every=1500, limit=1)._every == 1.5


# Renewal: the lease of a long run moves, from real time on, while the clock stands where it is put.


def lease_of(store: Any) -> int:
    claim = decode(store.read("ns", *KEY)).claim
    assert claim is not None
    return claim.lease_expires_at


class Noting(OneByOne):
    """The real store; tells when a claim's lease has been moved ``count`` times."""

    def __init__(self, inner: Any, count: int) -> None:
        self._inner, self._left, self.moved = inner, count + 1, threading.Event()
        self.reads_are_local = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def check_and_put(self, *args: Any, **kwargs: Any) -> Any:
        found = self._inner.check_and_put(*args, **kwargs)
        self._left -= 1
        if not self._left:
            self.moved.set()
        return found


def test_a_long_run_is_renewed_and_then_completes(store: Any) -> None:
    clock, noting = FakeClock(), Noting(store, 2)
    replay = Replay(noting, "ns", ttl=60, lease=0.03, renew=True, clock=clock)

    def handler() -> Any:
        assert lease_of(store) == START + 30
        clock.pass_seconds(100)
        assert noting.moved.wait(30)
        assert lease_of(store) == START + 100_030
        return "r"

    assert not replay.execute(KEY, PARAMS, handler).replayed
    assert replay.execute(KEY, PARAMS, handler).replayed
    until(lambda: not has_renewer(replay))


def test_a_long_async_run_is_renewed_and_then_completes(store: Any) -> None:
    clock, noting = FakeClock(), Noting(store, 2)

    async def main() -> None:
        replay = AsyncReplay(noting, "ns", ttl=60, lease=0.03, renew=True, clock=clock)

        async def handler() -> Any:
            clock.pass_seconds(100)
            assert await asyncio.to_thread(noting.moved.wait, 30)
            assert lease_of(store) == START + 100_030
            return "r"

        assert not (await replay.execute(KEY, PARAMS, handler)).replayed
        assert (await replay.execute(KEY, PARAMS, handler)).replayed

    asyncio.run(main())


@pytest.fixture
def renewers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The threads that are started without the module ``threading``: those of renewers."""
    started: list[Any] = []
    start = _thread.start_new_thread

    def noting(*args: Any) -> int:
        started.append(args)
        return start(*args)

    monkeypatch.setattr(_thread, "start_new_thread", noting)
    return started


def test_without_renew_no_thread_is_started(store: Any, renewers: list[Any]) -> None:
    replay = Replay(store, "ns", ttl=60, renew=False)
    handler = Handler("r", held=True)
    leader = Caller(replay.execute, KEY, PARAMS, handler)
    assert handler.started.wait(30)
    assert not renewers
    handler.let_go()
    leader.result()


def test_many_runs_share_one_renewer(store: Any, renewers: list[Any]) -> None:
    replay = Replay(store, "ns", ttl=60, lease=30, renew=True)
    handlers = [Handler(number, held=True) for number in range(4)]
    leaders = [
        Caller(replay.execute, ("s", str(number)), PARAMS, handler)
        for number, handler in enumerate(handlers)
    ]
    for handler in handlers:
        assert handler.started.wait(30)
    assert len(renewers) == 1
    with pytest.raises(InFlightError):
        replay.lookup(("s", "1"), PARAMS)
    for handler in handlers:
        handler.let_go()
    assert [leader.result().response for leader in leaders] == [0, 1, 2, 3]


@pytest.mark.parametrize("face", [Replay, AsyncReplay])
def test_a_renewal_that_fails_is_tried_again(
    store: Any, face: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "kvreplay")
    noting = Noting(store, 1)

    class FailingOnce(Noting):
        def check_and_put(self, *args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                raise StoreUnavailableError("busy")
            return noting.check_and_put(*args, **kwargs)

    replay = face(FailingOnce(store, 1), "ns", ttl=60, lease=0.03, renew=True)
    if face is Replay:
        outcome = replay.execute(KEY, PARAMS, lambda: noting.moved.wait(30))
    else:

        async def handler() -> Any:
            return await asyncio.to_thread(noting.moved.wait, 30)

        outcome = asyncio.run(replay.execute(KEY, PARAMS, handler))
    assert outcome.response is True
    assert "busy" in caplog.text


def test_a_renewer_stops_for_a_claim_that_was_taken_over(store: Any) -> None:
    from kvreplay import ClaimLostError

    replay = Replay(store, "ns", ttl=60, lease=0.03, renew=True)

    def handler() -> Any:
        assert has_renewer(replay)
        store.write("ns", *KEY, b"another owner's")
        until(lambda: not has_renewer(replay))
        return "late"

    with pytest.raises(ClaimLostError):
        replay.execute(KEY, PARAMS, handler)
    assert store.read("ns", *KEY) == b"another owner's"


@pytest.mark.parametrize("face", [Replay, AsyncReplay])
def test_a_renewal_never_fails_the_run(store: Any, face: Any) -> None:
    """Whatever a foreign store raises in a renewal, the handler's end is its own."""
    failed = threading.Event()

    class Failing(Noting):
        def check_and_put(self, *args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                failed.set()
                raise OSError(5, "of a foreign store")
            return self._inner.check_and_put(*args, **kwargs)

    replay = face(Failing(store, 1), "ns", ttl=60, lease=0.03, renew=True)
    runs: list[int] = []

    def handler() -> Any:
        runs.append(1)
        assert failed.wait(30)
        return "r"

    async def awaited_handler() -> Any:
        return await asyncio.to_thread(handler)

    if face is Replay:
        outcomes = [replay.execute(KEY, PARAMS, handler) for _ in range(2)]
    else:

        async def main() -> Any:
            return [await replay.execute(KEY, PARAMS, awaited_handler) for _ in range(2)]

        outcomes = asyncio.run(main())
    assert [outcome.replayed for outcome in outcomes] == [False, True]
    assert runs == [1]


@pytest.mark.parametrize("engine", SHARED, indirect=True)
def test_a_child_does_not_renew_its_parents_claims(store: Any, fork: Any) -> None:
    replay = Replay(store, "ns", ttl=60, lease=0.03, renew=True)
    handler = Handler("r", held=True)
    leader = Caller(replay.execute, KEY, PARAMS, handler)
    assert handler.started.wait(30)

    def child() -> None:
        before = store.read("ns", *KEY)
        noting = Noting(store, 3)
        own = Replay(noting, "ns", ttl=60, lease=0.03, renew=True)
        assert own.execute(("s", "own"), PARAMS, lambda: noting.moved.wait(30)).response
        assert replay.execute(("s", "inherited"), PARAMS, lambda: 1).response == 1
        assert replay._renewing is not None
        assert replay._renewing.is_idle
        assert before

    fork(child).join()
    handler.let_go()
    assert leader.result().response == "r"


def test_a_sweeper_outlives_whatever_a_store_raises(
    store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "kvreplay")
    watcher = Watcher()
    Replay(store, "ns", ttl=0).execute(("s", "due"), PARAMS, Handler("r"))
    flaky = Flaky(store, "sweep", RuntimeError("a bug of the store"))
    with Replay(flaky, "ns", ttl=60, on_event=watcher).sweeping(every=0.01):
        watcher.wait_for("swept", 1)
    assert "a bug of the store" in caplog.text
