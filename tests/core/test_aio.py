"""What is particular to event loops: cancellation, loops that end, threads beside loops."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from kvreplay import (
    AsyncReplay,
    ConfigError,
    IndeterminateError,
    InDoubtError,
    InFlightError,
    InProcessAtomicStore,
    ParamsMismatchError,
    Replay,
    ReplayKey,
)
from support.plain_stores import WalkableStore
from support.replaying import Caller, Handler, OneByOne

KEY = ("lsp", "session")
PARAMS = {"amount": 1}


class Held:
    """A coroutine handler that waits until it is let go."""

    def __init__(self, response: Any = "r") -> None:
        self.runs = 0
        self.cancelled = False
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self._response = response

    async def __call__(self) -> Any:
        self.runs += 1
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return self._response


def replay_on(store: Any, **settings: Any) -> AsyncReplay:
    return AsyncReplay(store, "ns", **{"ttl": 60, "wait_timeout": 30, **settings})


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
        handler.go.set()
        with pytest.raises(asyncio.CancelledError):
            await leader
        with pytest.raises(ValueError, match="declined"):  # as a follower of that run
            await replay.execute(KEY, PARAMS, Handler("never"))
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
        assert isinstance(errors[0].__cause__, ExceptionGroup)  # type: ignore[union-attr]
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
        await asyncio.sleep(0)  # the leader's task exists, and has not begun
        for task in asyncio.all_tasks() - {asyncio.current_task(), caller}:
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert (await replay.execute(KEY, PARAMS, Handler("now"))).response == "now"

    asyncio.run(main())


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
