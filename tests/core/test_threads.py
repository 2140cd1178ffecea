"""The threads that an AsyncReplay has for calls that may block."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from kvreplay import AsyncReplay, Replay
from kvreplay._runtime import liveness, threads
from kvreplay._runtime.threads import AT_ONCE, Threads
from kvreplay.backends.memory import MemoryStore
from support.replaying import Handler, OneByOne
from support.waiting import PATIENCE, HeldTransaction, until

KEY = ("lsp", "session")


def test_calls_share_a_thread_and_no_more_run_at_once_than_the_limit() -> None:
    own, go, running = Threads("own", 2), threading.Event(), []

    def call() -> str:
        running.append(threading.current_thread())
        assert go.wait(PATIENCE)
        return "r"

    calls = [own.submit(call) for _ in range(6)]
    until(lambda: len(running) == 2)
    assert len(own._crew.threads) == 2
    go.set()
    assert [each.result(PATIENCE) for each in calls] == ["r"] * 6
    assert len(set(running)) == 2
    assert {each.name for each in running} == {"own"}
    assert all(each.daemon for each in running)
    assert own.submit(threading.current_thread).result(PATIENCE) in running


def test_without_a_limit_no_call_waits_for_another() -> None:
    own, together = Threads("own", None), threading.Barrier(50)
    calls = [own.submit(together.wait, PATIENCE) for _ in range(50)]
    assert sorted(each.result(PATIENCE) for each in calls) == list(range(50))


def test_a_thread_without_work_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_IDLE", 0.01)
    own = Threads("own", 2)
    thread = own.submit(threading.current_thread).result(PATIENCE)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert not own._crew.threads
    assert own.submit(lambda: "again").result(PATIENCE) == "again"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=repr)
def test_what_a_call_raises_is_its_callers(error: BaseException) -> None:
    def call() -> None:
        raise error

    own = Threads("own", 1)
    assert own.submit(call).exception(PATIENCE) is error
    assert own.submit(lambda: "r").result(PATIENCE) == "r"


def test_a_call_that_raises_stop_iteration_comes_back() -> None:
    """A future cannot hold one: whoever waited for it would wait for ever."""
    own = Threads("own", 1)

    async def main() -> None:
        with pytest.raises(RuntimeError, match="StopIteration") as error:
            await own.call(next, iter(()))
        assert isinstance(error.value.__cause__, StopIteration)

    asyncio.run(main())


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
@pytest.mark.parametrize("begun", [True, False])
def test_an_interrupt_leaves_no_call_behind(
    begun: bool, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt right after the call was given to a thread, which has begun it or not."""
    own, busy, go, made = Threads("own", 1), threading.Event(), threading.Event(), []

    def call() -> None:
        busy.set()
        assert go.wait(PATIENCE)
        made.append("call")

    give = own.give

    def give_and_raise(*args: Any) -> None:
        give(*args)
        if begun:
            assert busy.wait(PATIENCE)
            threading.Timer(0.05, go.set).start()
        raise error

    async def main() -> None:
        if not begun:
            other = own.submit(go.wait, PATIENCE)
        monkeypatch.setattr(own, "give", give_and_raise)
        with pytest.raises(error):
            await own.call(call)
        assert made == ["call"] * begun
        monkeypatch.undo()
        go.set()
        assert await own.call(lambda: "next") == "next"
        assert made == ["call"] * begun
        if not begun:
            assert other.result(PATIENCE)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.mark.parametrize("begun", [True, False])
def test_a_cancellation_comes_after_the_call(begun: bool) -> None:
    own, busy, go, made = Threads("own", 1), threading.Event(), threading.Event(), []

    def call() -> None:
        busy.set()
        assert go.wait(PATIENCE)
        made.append("call")

    async def main() -> None:
        other = None if begun else own.submit(go.wait, PATIENCE)
        waiting = asyncio.create_task(own.call(call))
        await asyncio.sleep(0)
        assert busy.wait(PATIENCE if begun else 0) is begun
        waiting.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not waiting.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert made == ["call"]
        assert other is None or other.result(PATIENCE)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_a_child_starts_threads_of_its_own(fork: Any) -> None:
    own = Threads("own", 1)
    assert own.submit(lambda: "parent").result(PATIENCE) == "parent"

    def child() -> None:
        assert own.submit(lambda: "child").result(PATIENCE) == "child"

    with own._crew.lock:  # held by another thread of the parent, as it may be
        fork(child).join()
    assert own.submit(lambda: "parent").result(PATIENCE) == "parent"


def test_a_call_that_never_ends_does_not_keep_the_interpreter() -> None:
    program = """
import threading
from kvreplay._runtime.threads import Threads
started = threading.Event()
Threads("own", 1).submit(lambda: (started.set(), threading.Event().wait()))
assert started.wait(60)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)


# The loop goes on.


def test_functions_that_fill_the_loops_executor_wait_for_the_loop(store: Any) -> None:
    """Sync code on all threads of the default executor, and each waits for the AsyncReplay."""
    width = AT_ONCE  # of Python's own executor
    together = threading.Barrier(width)

    async def main() -> None:
        replay, loop = AsyncReplay(store, "ns", ttl=60), asyncio.get_running_loop()

        def endpoint(number: int) -> Any:
            together.wait(PATIENCE)
            asked = replay.execute(("s", str(number)), 1, Handler(number))
            return asyncio.run_coroutine_threadsafe(asked, loop).result(PATIENCE).response

        answers = await asyncio.gather(
            *(asyncio.to_thread(endpoint, number) for number in range(width))
        )
        assert answers == list(range(width))

    asyncio.run(main())


def test_transactions_whose_handlers_wait_for_other_requests_of_the_loop() -> None:
    """More than there would be threads for store calls; each is on a store of its own."""
    width = 2 * AT_ONCE

    async def main() -> None:
        loop, other = asyncio.get_running_loop(), AsyncReplay(MemoryStore(), "ns", ttl=60)
        stores = AsyncReplay(MemoryStore(), "ns", ttl=60)

        def handler(number: int) -> Callable[[Any], Any]:
            def inside(_: Any) -> Any:
                asked = other.execute_in_transaction(("s", str(number)), 1, lambda _: number)
                return asyncio.run_coroutine_threadsafe(asked, loop).result(PATIENCE).response

            return inside

        outcomes = await asyncio.gather(
            *(
                stores.execute_in_transaction(("s", str(number)), 1, handler(number))
                for number in range(width)
            )
        )
        assert [each.response for each in outcomes] == list(range(width))

    asyncio.run(main())


async def beats(loop_does: Callable[[], bool]) -> None:
    """Turn the loop until it is true, while something else is under way."""
    while not loop_does():
        await asyncio.sleep(0)


@pytest.mark.parametrize("engine", ["filesystem", "lmdb", "sqlite"], indirect=True)
@pytest.mark.parametrize("when", ["it begins", "it ends"])
def test_the_loop_goes_on_while_the_owners_file_is_busy(store: Any, when: str) -> None:
    """A file system may block whoever opens it, and then nobody else gets at the file."""
    busy, go = threading.Event(), threading.Event()

    def hold() -> None:
        with liveness._lock:
            busy.set()
            assert go.wait(PATIENCE)

    holder = threading.Thread(target=hold)

    def start() -> None:
        holder.start()
        assert busy.wait(PATIENCE)

    async def main() -> None:
        replay, ran = AsyncReplay(store, "ns", ttl=60), asyncio.Event()

        async def handler() -> str:
            if when == "it ends":
                start()
            ran.set()
            return "r"

        if when == "it begins":
            start()
        asked = asyncio.create_task(replay.execute(KEY, 1, handler))
        if when == "it begins":
            for _ in range(1000):
                await asyncio.sleep(0)
            assert not ran.is_set()
            assert not asked.done()
            go.set()
        else:
            assert (await asyncio.wait_for(asked, PATIENCE)).response == "r"
            go.set()
        assert (await asked).response == "r"

    try:
        asyncio.run(asyncio.wait_for(main(), PATIENCE))
    finally:
        go.set()
        holder.join(PATIENCE)
    until(lambda: not liveness._known_process().files)


@pytest.mark.parametrize("batching", [True, False])
def test_the_loop_goes_on_while_a_change_waits_for_its_lock(batching: bool) -> None:
    inner, waits, go = MemoryStore(), threading.Event(), threading.Event()

    class Held(OneByOne):
        reads_are_local = False

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def check_and_put(self, *args: Any, **options: Any) -> Any:
            waits.set()
            assert go.wait(PATIENCE)
            return inner.check_and_put(*args, **options)

    class HeldOneByOne(Held):
        check_and_put_each = None

    async def main() -> None:
        replay = AsyncReplay(Held() if batching else HeldOneByOne(), "ns", ttl=60)
        changes = [
            asyncio.create_task(replay.execute(("s", str(number)), 1, Handler(number)))
            for number in range(2 * AT_ONCE)
        ]
        await beats(waits.is_set)
        assert await replay.lookup(("s", "other"), 1) is None  # what only looks waits for none
        assert not any(each.done() for each in changes)
        go.set()
        assert [(await each).response for each in changes] == list(range(2 * AT_ONCE))

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_a_prompt_store_is_changed_on_the_loop_itself() -> None:
    store = MemoryStore()
    replay = AsyncReplay(store, "ns", ttl=60)
    before = set(threading.enumerate())
    outcome = asyncio.run(replay.execute(KEY, 1, Handler("r")))
    assert (outcome.response, outcome.replayed) == ("r", False)
    assert set(threading.enumerate()) <= before, "a thread was started"


def test_the_loop_goes_on_while_a_prompt_store_is_in_a_transaction() -> None:
    store = MemoryStore()
    replay = AsyncReplay(store, "ns", ttl=60)
    held = HeldTransaction(store, b"v")

    async def main() -> None:
        change = asyncio.create_task(replay.execute(KEY, 1, Handler("r")))
        await beats(lambda: replay._driver._changes._crew.unfinished > 0)
        assert await replay.lookup(("s", "other"), 1) is None
        assert not change.done()
        held.end()
        assert (await change).response == "r"

    try:
        asyncio.run(asyncio.wait_for(main(), PATIENCE))
    finally:
        held.end()


def test_a_loop_that_is_gone_leaves_no_threads(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_IDLE", 0.01)
    before = set(threading.enumerate())  # some are idle still, of loops before
    asyncio.run(AsyncReplay(store, "ns", ttl=60).execute(KEY, 1, Handler("r")))
    until(lambda: set(threading.enumerate()) <= before)
    assert Replay(store, "ns", ttl=60).execute(KEY, 1, Handler("never")).replayed
