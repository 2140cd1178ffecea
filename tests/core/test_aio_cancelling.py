"""Tasks that are cancelled, loops and task groups that end: who is told what, and what is stored."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from kvreplay import (
    IndeterminateError,
    InDoubtError,
    Replay,
)
from support.replaying import Handler, Held, OneByOne, replay_on

KEY = ("lsp", "session")
PARAMS = {"amount": 1}


def test_cancelling_the_leader_cancels_neither_the_effect_nor_a_follower(store: Any) -> None:
    async def main() -> None:
        replay, handler = replay_on(store), Held()
        leader = asyncio.create_task(replay.execute(KEY, PARAMS, handler))
        await handler.started.wait()
        follower = asyncio.create_task(replay.execute(KEY, PARAMS, handler))
        await asyncio.sleep(0)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        handler.go.set()
        assert (await follower).response == "r"
        assert (handler.runs, handler.cancelled) == (1, False)
        assert (await replay.execute(KEY, PARAMS, handler)).replayed

    asyncio.run(main())


def test_cancelling_a_follower_cancels_nobody_else(store: Any) -> None:
    async def main() -> None:
        replay, handler = replay_on(store), Held()
        leader = asyncio.create_task(replay.execute(KEY, PARAMS, handler))
        await handler.started.wait()
        followers = [asyncio.create_task(replay.execute(KEY, PARAMS, handler)) for _ in range(3)]
        await asyncio.sleep(0)
        followers[0].cancel()
        handler.go.set()
        done = await asyncio.gather(leader, *followers, return_exceptions=True)
        assert isinstance(done[1], asyncio.CancelledError)
        assert [each.response for each in (done[0], *done[2:])] == ["r"] * 3  # type: ignore[union-attr]

    asyncio.run(main())


def test_a_failure_after_its_caller_was_cancelled_is_not_lost_in_a_warning(store: Any) -> None:
    complaints: list[Any] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: complaints.append(context)
        )
        replay, handler = replay_on(store), Held()

        async def failing() -> Any:
            await handler()
            raise ValueError("declined")

        leader = asyncio.create_task(replay.execute(KEY, PARAMS, failing))
        await handler.started.wait()
        leader.cancel()
        follower = asyncio.create_task(replay.execute(KEY, PARAMS, Handler("never")))
        await asyncio.sleep(0)
        handler.go.set()
        with pytest.raises(asyncio.CancelledError):
            await leader
        with pytest.raises(ValueError, match="declined"):
            await follower
        assert (await replay.execute(KEY, PARAMS, Handler("after"))).response == "after"

    asyncio.run(main())
    assert complaints == []


def test_a_loop_that_ends_leaves_the_key_in_doubt(store: Any) -> None:
    async def main() -> None:
        handler = Held()
        caller = asyncio.create_task(replay_on(store).execute(KEY, PARAMS, handler))
        await handler.started.wait()
        assert not caller.done()

    asyncio.run(main())  # cancels what is left
    with pytest.raises(InDoubtError):
        asyncio.run(replay_on(store).execute(KEY, PARAMS, Handler("never")))


def stored_claim(store: Any) -> Any:
    (record,) = Replay(store, "ns", ttl=60).records()
    return record.claim


def test_a_loop_that_ends_says_in_the_claim_that_the_run_has_ended(store: Any) -> None:
    async def main() -> None:
        handler = Held()
        caller = asyncio.create_task(replay_on(store).execute(KEY, PARAMS, handler))
        await handler.started.wait()
        assert stored_claim(store).ended_at is None
        assert not caller.done()

    asyncio.run(main())  # cancels what is left
    assert stored_claim(store).ended_at is not None


def test_a_handler_that_cancels_itself_leaves_the_key_in_doubt(store: Any) -> None:
    async def handler() -> Any:
        raise asyncio.CancelledError

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError):
            await replay_on(store).execute(KEY, PARAMS, handler)
        with pytest.raises(InDoubtError):
            await replay_on(store).execute(KEY, PARAMS, Handler("never"))

    asyncio.run(main())
    assert stored_claim(store).ended_at is not None


@pytest.mark.parametrize("renew", [False, True])
def test_a_task_group_that_does_not_know_leaves_the_key_in_doubt(store: Any, renew: bool) -> None:
    async def pay(leg: int) -> None:
        raise IndeterminateError("hung up") if leg else ValueError("declined")

    async def handler() -> Any:
        async with asyncio.TaskGroup() as outer:
            outer.create_task(pay(0))
            async with asyncio.TaskGroup() as inner:
                inner.create_task(pay(1))

    async def main() -> None:
        replay = replay_on(store, renew=renew)
        both = [replay.execute(KEY, PARAMS, handler) for _ in range(2)]
        errors = await asyncio.gather(*both, return_exceptions=True)
        assert [type(error) for error in errors] == [InDoubtError] * 2
        causes = [type(error.__cause__) for error in errors]  # type: ignore[union-attr]
        assert ExceptionGroup in causes, "the leader's"
        with pytest.raises(InDoubtError):
            await replay.execute(KEY, PARAMS, Handler("never"))

    asyncio.run(main())
    assert stored_claim(store).ended_at is not None


def test_a_task_group_that_declines_frees_the_key(store: Any) -> None:
    async def pay() -> None:
        raise ValueError("declined")

    async def handler() -> Any:
        async with asyncio.TaskGroup() as group:
            group.create_task(pay())

    async def main() -> None:
        replay = replay_on(store)
        with pytest.raises(ExceptionGroup):
            await replay.execute(KEY, PARAMS, handler)
        assert (await replay.execute(KEY, PARAMS, Handler("now"))).response == "now"

    asyncio.run(main())


@pytest.mark.parametrize("which", ["the claim", "the answer"])
def test_a_run_that_is_cancelled_while_its_change_is_under_way(store: Any, which: str) -> None:
    """The change is made by a thread, which no cancellation stops: the flow goes on after it."""
    under_way, go = threading.Event(), threading.Event()
    values: list[Any] = []

    class Slow(OneByOne):
        reads_are_local = True

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def check_and_put(self, *args: Any, **kwargs: Any) -> Any:
            values.append(kwargs["value"])
            if len(values) == (1 if which == "the claim" else 2):
                under_way.set()
                assert go.wait(30)
            return store.check_and_put(*args, **kwargs)

    class SlowOneByOne(Slow):
        check_and_put_each = None  # it takes no batches

    async def main(slow: Any) -> None:
        handler = Handler("r")
        caller = asyncio.create_task(replay_on(slow).execute(KEY, PARAMS, handler))
        await asyncio.to_thread(under_way.wait)
        for task in asyncio.all_tasks() - {asyncio.current_task(), caller}:
            task.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        assert not caller.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert handler.runs == (which == "the answer")
        again = await replay_on(store).execute(KEY, PARAMS, Handler("anew"))
        assert (again.response, again.replayed) == (
            ("anew", False) if which == "the claim" else ("r", True)
        )

    for slow in (Slow(), SlowOneByOne()):
        asyncio.run(main(slow))
        store.remove("ns", "lsp", "session")
        values.clear()
        under_way.clear()
        go.clear()


def test_a_loop_that_ends_waits_until_a_run_has_told_of_its_end(store: Any) -> None:
    """As after Ctrl-C, when ``asyncio.run`` cancels what is left."""
    under_way, go = threading.Event(), threading.Event()

    class Slow(OneByOne):
        reads_are_local = True

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def check_and_put(self, *args: Any, **kwargs: Any) -> Any:
            if kwargs["expected"] is not None:
                under_way.set()
                assert go.wait(30)
            return store.check_and_put(*args, **kwargs)

    async def main() -> None:
        run = replay_on(Slow()).execute(KEY, PARAMS, Handler(IndeterminateError("hung up")))
        caller = asyncio.create_task(run)
        await asyncio.to_thread(under_way.wait)
        asyncio.get_running_loop().call_later(0.01, go.set)
        caller.cancel()

    asyncio.run(main())  # cancels what is left
    assert stored_claim(store).ended_at is not None


def test_a_leader_cancelled_before_its_first_step_frees_the_key(store: Any) -> None:
    async def main() -> None:
        replay = replay_on(store)
        caller = asyncio.create_task(replay.execute(KEY, PARAMS, Handler("never")))
        while not replay._leaders:  # then the task exists, and has not begun
            await asyncio.sleep(0)
        for task in replay._leaders:
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert (await replay.execute(KEY, PARAMS, Handler("now"))).response == "now"

    asyncio.run(main())
