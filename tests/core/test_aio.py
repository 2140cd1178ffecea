"""What is particular to event loops: tasks that follow, threads beside loops, loops that are gone."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

import pytest

from kvreplay import (
    AsyncReplay,
    ConfigError,
    InDoubtError,
    InFlightError,
    InProcessAtomicStore,
    ParamsMismatchError,
    Replay,
    ReplayKey,
)
from support.plain_stores import WalkableStore
from support.replaying import Caller, Handler, Held, OneByOne, replay_on

KEY = ("lsp", "session")
PARAMS = {"amount": 1}


def test_other_params_are_stale_at_once_while_the_key_runs(store: Any) -> None:
    async def main() -> None:
        replay, handler = replay_on(store), Held()
        leader = asyncio.create_task(replay.execute(KEY, PARAMS, handler))
        await handler.started.wait()
        with pytest.raises(ParamsMismatchError):
            await replay.execute(KEY, {"amount": 2}, handler)
        handler.go.set()
        assert (await leader).response == "r"

    asyncio.run(main())


def test_a_thousand_tasks_make_one_effect(store: Any) -> None:
    async def main() -> None:
        replay, runs = replay_on(store), []

        async def handler() -> Any:
            runs.append(1)
            await asyncio.sleep(0)
            return len(runs)

        outcomes = await asyncio.gather(
            *(replay.execute(KEY, PARAMS, handler) for _ in range(1000))
        )
        assert {outcome.response for outcome in outcomes} == {1}
        assert [outcome.replayed for outcome in outcomes].count(False) == 1

    asyncio.run(main())


def test_a_thread_and_a_loop_share_the_flight(store: Any) -> None:
    handler = Handler("from the thread", held=True)
    leader = Caller(Replay(store, "ns", ttl=60).execute, KEY, PARAMS, handler)
    assert handler.started.wait(30)

    async def main() -> Any:
        follower = asyncio.create_task(replay_on(store).execute(KEY, PARAMS, Held()))
        await asyncio.sleep(0)
        handler.let_go()
        return await follower

    assert asyncio.run(main()).response == "from the thread"
    assert leader.result().response == "from the thread"


def test_a_follower_whose_loop_has_ended_is_forgotten(store: Any) -> None:
    handler = Handler("r", held=True)
    leader = Caller(Replay(store, "ns", ttl=60).execute, KEY, PARAMS, handler)
    assert handler.started.wait(30)

    async def give_up() -> None:
        asyncio.create_task(replay_on(store).execute(KEY, PARAMS, Held()))  # noqa: RUF006
        await asyncio.sleep(0)

    asyncio.run(give_up())
    handler.let_go()
    assert leader.result().response == "r"


def test_a_leader_in_another_thread_that_was_interrupted_is_followed_up(store: Any) -> None:
    handler = Handler(KeyboardInterrupt(), held=True)
    leader = Caller(Replay(store, "ns", ttl=60).execute, KEY, PARAMS, handler)
    assert handler.started.wait(30)

    async def main() -> Any:
        follower = asyncio.create_task(replay_on(store).execute(KEY, PARAMS, Held()))
        await asyncio.sleep(0)
        handler.let_go()
        return await follower

    with pytest.raises(InDoubtError):
        asyncio.run(main())
    with pytest.raises(KeyboardInterrupt):
        leader.result()


def test_a_plain_function_is_a_handler_too(store: Any) -> None:
    async def main() -> Any:
        replay = replay_on(store, on_in_doubt=lambda record: None)
        return await replay.execute(KEY, PARAMS, lambda: threading.get_ident())

    assert asyncio.run(main()).response == threading.get_ident()


def test_a_store_that_may_block_is_read_on_a_thread() -> None:
    readers: set[int] = set()

    class Remote(WalkableStore):
        def read(self, p: str, s: str, k: str) -> bytes:
            readers.add(threading.get_ident())
            return super().read(p, s, k)

    async def main() -> None:
        replay = replay_on(InProcessAtomicStore(Remote()))
        for _ in range(2):
            outcome = await replay.execute(KEY, PARAMS, Handler("r"))
        assert outcome.replayed

    asyncio.run(main())
    assert readers
    assert threading.get_ident() not in readers


def test_records_come_page_by_page(store: Any) -> None:
    async def main() -> None:
        replay = replay_on(store, lease=None)
        for number in range(230):
            await replay.execute(("s", str(number)), PARAMS, Handler(number))
        seen = {record.key.id async for record in replay.records()}
        assert seen == {str(number) for number in range(230)}

    asyncio.run(main())


# What was left on the loop cannot be cancelled any more, and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("face", [Replay, AsyncReplay])
def test_a_closed_loop_blocks_no_key(store: Any, face: Any) -> None:
    """A loop that is closed without cancelling its tasks: the key is in doubt, not in flight."""
    loop = asyncio.new_event_loop()

    async def begin() -> None:
        handler = Held()
        loop.create_task(replay_on(store).execute(KEY, PARAMS, handler))  # noqa: RUF006
        await handler.started.wait()

    loop.set_exception_handler(lambda loop, context: None)
    loop.run_until_complete(begin())
    follower = Caller(Replay(store, "ns", ttl=60).execute, KEY, PARAMS, Handler("never"))
    loop.close()
    with pytest.raises(InDoubtError):
        follower.result()
    replay = face(store, "ns", ttl=60)
    with pytest.raises(InDoubtError):
        outcome = replay.execute(KEY, PARAMS, Handler("never"))
        asyncio.run(outcome)
    store.close()
    gc.collect()  # here, and not in another test


def test_an_answer_is_not_given_before_its_commit_has_returned(store: Any) -> None:
    """A commit can be seen an instant before it is durable; its own process waits for it."""
    seen, go = threading.Event(), threading.Event()

    class Slow(OneByOne):
        reads_are_local = True

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def check_and_put(self, *args: Any, **kwargs: Any) -> Any:
            found = store.check_and_put(*args, **kwargs)
            if found is not None:  # the completion
                seen.set()
                assert go.wait(30)
            return found

    slow = Slow()
    leader = Caller(Replay(slow, "ns", ttl=60).execute, KEY, PARAMS, Handler("r"))
    assert seen.wait(30)
    replay = Replay(slow, "ns", ttl=60)
    waits = threading.Event()
    waiting = Replay(slow, "ns", ttl=60, on_event=lambda event: waits.set())
    follower = Caller(waiting.execute, KEY, PARAMS, Handler("never"))
    assert waits.wait(30)
    assert follower.is_alive()
    with pytest.raises(InFlightError):
        replay.lookup(KEY, PARAMS)
    with pytest.raises(ParamsMismatchError):
        replay.lookup(KEY, {"amount": 2})
    go.set()
    assert leader.result().response == follower.result().response == "r"
    found = replay.lookup(KEY, PARAMS)
    assert found is not None
    assert found.response == "r"


def test_a_coroutine_function_is_refused_by_the_blocking_face(store: Any) -> None:
    replay = Replay(store, "ns", ttl=60)

    async def handler() -> Any:
        raise AssertionError("nobody awaits it")

    with pytest.raises(ConfigError, match="AsyncReplay"):
        replay.execute(KEY, PARAMS, handler)
    with pytest.raises(ConfigError, match="AsyncReplay"):
        replay.idempotent(key=lambda: KEY)(handler)
    assert replay.execute(KEY, PARAMS, lambda: "now").response == "now"


def test_what_a_nested_request_decides_is_not_told_of_the_outer_key(store: Any) -> None:
    kinds: list[tuple[str, str | None]] = []
    replay = Replay(
        store, "ns", ttl=60, on_event=lambda event: kinds.append((event.kind, event.key))
    )
    replay.execute(("s", "inner"), PARAMS, Handler("r"))
    kinds.clear()
    with pytest.raises(ParamsMismatchError):
        replay.execute(KEY, PARAMS, lambda: replay.execute(("s", "inner"), "other", Handler("n")))
    inner, outer = ReplayKey("s", "inner").digest(), ReplayKey(*KEY).digest()
    assert kinds == [("started", outer), ("params_mismatch", inner), ("released", outer)]
