"""``wait_timeout``: one budget for a request, whoever runs its key, on a clock of its own."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from kvreplay import AsyncReplay, ConfigError, InFlightError, ParamsMismatchError, Replay, ReplayKey
from kvreplay._protocol.params import canonical
from kvreplay._protocol.record import Claim, ReplayRecord, State, encode, encode_response
from kvreplay._runtime.singleflight import Flight, flights
from kvreplay.backends.memory import MemoryStore
from support.replaying import Caller, FakeClock, Handler, Interrupt
from support.requesting import KEY, NAMESPACE, OTHER, PARAMS
from support.waiting import until

DAY = 86_400


class TwoClocks(FakeClock):
    """A wall clock, and one beside it that only goes forward; both go where a test puts them."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.seconds

    def see(self) -> None:
        """Make every follower look again, and wait until one of them has."""
        before = self.looks
        for flight in list(flights.table.values()):
            for wake in list(flight.wakers):
                wake()
        until(lambda: self.looks > before)


@pytest.fixture
def clock() -> TwoClocks:
    return TwoClocks()


@pytest.fixture
def held() -> Iterator[Handler]:
    """A handler that runs until it is let go."""
    handler = Handler("r", held=True)
    yield handler
    handler.let_go()


@pytest.fixture
def lead(replay: Any, held: Handler) -> Iterator[Callable[[], tuple[Caller, Flight[Any]]]]:
    """``lead()`` begins a run of the key, and returns its caller and its flight."""
    leaders: list[Caller] = []

    def lead() -> tuple[Caller, Flight[Any]]:
        leader = Caller(replay.execute, KEY, PARAMS, held)
        leaders.append(leader)
        assert held.started.wait(30)
        (flight,) = flights.table.values()
        return leader, flight

    yield lead
    held.let_go()
    for leader in leaders:
        leader.end()


def test_a_follower_whose_time_is_over_goes_and_the_run_goes_on(
    replay: Any, held: Handler, clock: TwoClocks, lead: Any
) -> None:
    leader, flight = lead()
    follower = Caller(replay.execute, KEY, PARAMS, Handler("never"), wait_timeout=10)
    until(lambda: flight.wakers)
    clock.seconds = 9.9
    clock.see()
    assert follower.is_alive()
    clock.seconds = 10
    clock.see()
    with pytest.raises(InFlightError, match="wait_timeout; nothing ran here") as error:
        follower.result()
    assert error.value.retry_after == 1.0
    assert not flight.wakers
    held.let_go()
    assert leader.result().response == "r"
    assert held.runs == 1
    assert replay.execute(KEY, PARAMS, Handler("never")).replayed


@pytest.mark.parametrize("jump", [-DAY, DAY])
def test_a_jump_of_the_wall_clock_ends_no_wait_and_prolongs_none(
    replay: Any, clock: TwoClocks, lead: Any, jump: int
) -> None:
    _, flight = lead()
    follower = Caller(replay.execute, KEY, PARAMS, Handler("never"), wait_timeout=10)
    until(lambda: flight.wakers)
    clock.pass_seconds(jump)
    clock.see()
    assert follower.is_alive()
    clock.seconds = 10
    clock.see()
    with pytest.raises(InFlightError):
        follower.result()


def test_without_a_limit_a_follower_waits_for_the_end(
    replay: Any, held: Handler, clock: TwoClocks, lead: Any
) -> None:
    leader, flight = lead()
    follower = Caller(replay.execute, KEY, PARAMS, Handler("never"), wait_timeout=None)
    until(lambda: flight.wakers)
    clock.seconds = 1000 * DAY
    clock.see()
    assert follower.is_alive()
    held.let_go()
    assert follower.result().response == leader.result().response == "r"


def test_who_does_not_wait_is_told_at_once(
    make: Callable[..., Any], store: Any, lead: Any, events: list[str]
) -> None:
    lead()
    unwilling = make(wait_timeout=0)
    events.clear()
    for ask in (
        lambda: unwilling.execute(KEY, PARAMS, Handler("never")),
        lambda: make(wait_timeout=30).execute(KEY, PARAMS, Handler("never"), wait_timeout=0),
        lambda: unwilling.decorated(lambda: "never", key=lambda: KEY, params=lambda: PARAMS)(),
        lambda: make(wait_timeout=30).decorated(
            lambda: "never", key=lambda: KEY, params=lambda: PARAMS, wait_timeout=0
        )(),
    ):
        with pytest.raises(InFlightError):
            ask()
    assert "waited" not in events
    with pytest.raises(ParamsMismatchError):
        unwilling.execute(KEY, OTHER, Handler("never"))
    assert unwilling.execute(("s", "free"), PARAMS, Handler("runs")).response == "runs"


def test_a_call_says_for_itself_how_long_it_waits(
    make: Callable[..., Any], held: Handler, lead: Any
) -> None:
    """``None`` is no limit, and not the setting."""
    _, flight = lead()
    unwilling = make(wait_timeout=0)
    decorated = unwilling.decorated(
        lambda: "never", key=lambda: KEY, params=lambda: PARAMS, wait_timeout=None
    )
    followers = [
        Caller(unwilling.execute, KEY, PARAMS, Handler("never"), wait_timeout=None),
        Caller(decorated),
    ]
    until(lambda: len(flight.wakers) == 2)
    held.let_go()
    assert followers[0].result().response == followers[1].result() == "r"


def test_a_transaction_waits_as_long_as_it_says(
    face: Any, transactional: Any, held: Handler
) -> None:
    replay = face(transactional, NAMESPACE, ttl=60, wait_timeout=30)
    leader = Caller(replay.execute, KEY, PARAMS, held)
    assert held.started.wait(30)
    (flight,) = flights.table.values()
    with pytest.raises(InFlightError):
        replay.execute_in_transaction(KEY, PARAMS, lambda _: "never", wait_timeout=0)
    follower = Caller(replay.execute_in_transaction, KEY, PARAMS, lambda _: "never")
    until(lambda: flight.wakers)
    held.let_go()
    assert follower.result().response == leader.result().response == "r"


@pytest.mark.parametrize("wrong", ["10 sec", -1, float("nan"), True])
def test_a_wrong_time_to_wait_is_refused_before_anything_runs(
    make: Callable[..., Any], replay: Any, wrong: Any
) -> None:
    replay.execute(("s", "answered"), PARAMS, Handler("r"))
    for key in (KEY, ("s", "answered")):
        with pytest.raises(ConfigError, match="wait_timeout"):
            replay.execute(key, PARAMS, Handler("never"), wait_timeout=wrong)
    with pytest.raises(ConfigError, match="wait_timeout"):
        replay.decorated(lambda: "never", key=lambda: KEY, wait_timeout=wrong)
    with pytest.raises(ConfigError, match="wait_timeout"):
        make(wait_timeout=wrong)


# Another owner, and a run in this process that waits for it.


@pytest.fixture
def elsewhere(store: Any, clock: TwoClocks) -> ReplayRecord:
    """The claim of an owner on another machine, whose lease is not over."""
    claim = Claim(b"t" * 16, clock.now + 30_000, "elsewhere:1:1:1:1:1:1")
    record = ReplayRecord(
        State.IN_PROGRESS, ReplayKey(*KEY), canonical(PARAMS), None, clock.now, None, claim
    )
    store.write(NAMESPACE, *KEY, encode(record))
    return record


def answered(record: ReplayRecord) -> bytes:
    return encode(
        attrs.evolve(
            record,
            state=State.COMPLETED,
            response=encode_response("theirs", ""),
            expires_at=record.created_at + 60_000,
            claim=None,
        )
    )


def lead_and_follow(
    replay: Any, clock: TwoClocks, leads_for: float, follows_for: float | None
) -> tuple[Caller, Caller]:
    """Two requests of this process: one waits for the other owner, and one for that one."""
    leader = Caller(replay.execute, KEY, PARAMS, Handler("never"), wait_timeout=leads_for)
    until(lambda: any(flight.bound for flight in flights.table.values()))
    (flight,) = flights.table.values()
    follower = Caller(replay.execute, KEY, PARAMS, Handler("never"), wait_timeout=follows_for)
    until(lambda: flight.wakers)
    clock.seconds = leads_for
    with pytest.raises(InFlightError, match="another owner"):
        leader.result()
    return leader, follower


def test_who_has_time_left_does_not_share_the_end_of_anothers(
    replay: Any, clock: TwoClocks, store: Any, elsewhere: ReplayRecord
) -> None:
    _, follower = lead_and_follow(replay, clock, 5, None)
    store.write(NAMESPACE, *KEY, answered(elsewhere))
    outcome = follower.result()
    assert (outcome.response, outcome.replayed) == ("theirs", True)


def test_whose_time_is_over_shares_that_end(
    replay: Any, clock: TwoClocks, elsewhere: ReplayRecord
) -> None:
    _, follower = lead_and_follow(replay, clock, 5, 5)
    with pytest.raises(InFlightError):
        follower.result()


def test_waiting_here_and_elsewhere_is_one_budget(
    replay: Any, clock: TwoClocks, elsewhere: ReplayRecord
) -> None:
    _, follower = lead_and_follow(replay, clock, 8, 10)
    until(lambda: any(flight.bound for flight in flights.table.values()))  # it leads now
    clock.seconds = 10
    with pytest.raises(InFlightError, match="another owner"):
        follower.result()


def test_two_handlers_that_ask_for_each_others_key_do_not_wait_for_ever(replay: Any) -> None:
    keys = [("s", "one"), ("s", "two")]
    both = threading.Barrier(2)
    inner: list[Exception] = []

    def asking(other: Any) -> Callable[[], Any]:
        def handler() -> Any:
            both.wait(30)
            try:
                return replay.execute(other, PARAMS, Handler("runs"), wait_timeout=0.05).response
            except InFlightError as error:
                inner.append(error)
                raise

        handler.blocks = True  # type: ignore[attr-defined]
        return handler

    replay = Replay(replay.replay._settings.store, NAMESPACE, ttl=60)  # on real clocks
    callers = [
        Caller(replay.execute, own, PARAMS, asking(other)) for own, other in (keys, reversed(keys))
    ]
    for caller in callers:
        caller.end()
    assert inner


# What an abandoned follower leaves behind.

MANY = 10_000


async def futures() -> int:
    """Count the futures and tasks that there are, once the loop has done what was due."""
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    return sum(isinstance(each, asyncio.Future) for each in gc.get_objects())


def test_cancelled_followers_leave_nothing_behind() -> None:
    async def main() -> None:
        replay, go = AsyncReplay(MemoryStore(), NAMESPACE, ttl=60), asyncio.Event()
        leader = asyncio.create_task(replay.execute(KEY, PARAMS, go.wait))
        while not any(flight.bound for flight in flights.table.values()):
            await asyncio.sleep(0)
        (flight,) = flights.table.values()
        before = await futures()
        for _ in range(MANY // 1000):
            tasks = [asyncio.create_task(replay.execute(KEY, PARAMS, go.wait)) for _ in range(1000)]
            while len(flight.wakers) < 1000:
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError) for each in ends)
        del tasks, task, ends
        assert not flight.wakers
        assert await futures() <= before
        go.set()
        assert (await leader).response is True

    asyncio.run(main())


def test_a_follower_on_a_loop_whose_time_is_over_cancels_nobody() -> None:
    async def main() -> None:
        replay, go = AsyncReplay(MemoryStore(), NAMESPACE, ttl=60), asyncio.Event()
        leader = asyncio.create_task(replay.execute(KEY, PARAMS, go.wait))
        while not any(flight.bound for flight in flights.table.values()):
            await asyncio.sleep(0)
        (flight,) = flights.table.values()
        patient = asyncio.create_task(replay.execute(KEY, PARAMS, go.wait))
        before = await futures()
        ends = await asyncio.gather(
            *(replay.execute(KEY, PARAMS, go.wait, wait_timeout=0.001) for _ in range(1000)),
            return_exceptions=True,
        )
        assert all(isinstance(each, InFlightError) for each in ends)
        del ends
        assert len(flight.wakers) == 1
        assert await futures() <= before + 3  # those of the patient one
        go.set()
        assert (await patient).response is True
        assert (await leader).response is True

    asyncio.run(main())


@pytest.mark.parametrize("how", ["its time is over", "interrupted"])
def test_followers_of_other_threads_leave_nothing_behind(held: Handler, how: str) -> None:
    class Clock(TwoClocks):
        def monotonic(self) -> float:
            self.looks += 1
            if self.looks % 3 == 0:  # at its second look, after it has waited once
                if how == "interrupted":
                    raise Interrupt
                self.seconds += 60
            elif self.looks % 3 == 2:
                for wake in list(flight.wakers):
                    wake()
            return self.seconds

    store = MemoryStore()
    leader = Caller(Replay(store, NAMESPACE, ttl=60).execute, KEY, PARAMS, held)
    assert held.started.wait(30)
    (flight,) = flights.table.values()
    replay = Replay(store, NAMESPACE, ttl=60, wait_timeout=30, clock=Clock())
    for _ in range(MANY):
        with pytest.raises(InFlightError if how == "its time is over" else Interrupt):
            replay.execute(KEY, PARAMS, Handler("never"))
    assert not flight.wakers
    held.let_go()
    assert leader.result().response == "r"
