"""What fails before the handler has begun leaves the key free; after that nobody knows."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kvreplay import (
    AsyncReplay,
    ConfigError,
    InDoubtError,
    OutcomeUnknownError,
    Replay,
    ResponseNotStorableError,
)
from kvreplay._protocol.record import decode
from support.engines import TRANSACTIONAL
from support.replaying import START, Async, Handler, Interrupt, OneByOne, Sync
from support.requesting import KEY, NAMESPACE, OTHER, PARAMS, entry


def is_free(replay: Any, store: Any) -> bool:
    """Whether nothing is stored, and a request with any params runs."""
    nothing = entry(store) is None
    return nothing and not replay.execute(KEY, OTHER, Handler("anew")).replayed


# A function of the wrong kind.


def generates() -> Iterator[int]:
    yield 1


async def generates_awaited() -> Any:
    yield 1


async def awaits() -> Any:
    return "never awaited"


class Callables:
    """What else can be called."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self) -> Any:
        return self._function()

    def needs_more(self, invoice: str) -> str:
        return invoice

    def method(self) -> Iterator[int]:
        yield 1

    async def awaited(self) -> Any:
        return "never awaited"


class Generating:
    def __call__(self) -> Iterator[int]:
        yield 1


class Awaiting:
    async def __call__(self) -> Any:
        return "awaited"


GENERATORS = [
    pytest.param(generates, id="generator"),
    pytest.param(generates_awaited, id="async generator"),
    pytest.param(functools.partial(functools.partial(generates)), id="partial generator"),
    pytest.param(Callables(None).method, id="generator method"),
    pytest.param(Generating(), id="generator object"),
]
COROUTINES = [
    pytest.param(awaits, id="coroutine"),
    pytest.param(functools.partial(awaits), id="partial coroutine"),
    pytest.param(Callables(None).awaited, id="coroutine method"),
    pytest.param(Awaiting(), id="coroutine object"),
]


@pytest.mark.parametrize("handler", [*GENERATORS, *COROUTINES])
def test_a_handler_that_calling_does_not_run_is_refused(store: Any, handler: Any) -> None:
    replay = Sync(store, NAMESPACE, ttl=60)
    with pytest.raises(ConfigError, match="nothing ran"):
        replay.execute(KEY, PARAMS, handler)
    assert is_free(replay, store)
    with pytest.raises(ConfigError, match="nothing ran"):
        replay.execute(("s", "k"), PARAMS, functools.partial(handler))


@pytest.mark.parametrize("handler", GENERATORS)
def test_an_event_loop_refuses_generator_functions_too(store: Any, handler: Any) -> None:
    replay = AsyncReplay(store, NAMESPACE, ttl=60)
    with pytest.raises(ConfigError, match="nothing ran"):
        asyncio.run(replay.execute(KEY, PARAMS, handler))
    assert is_free(Async(store, NAMESPACE, ttl=60), store)


@pytest.mark.parametrize(
    "handler", [*COROUTINES, pytest.param(lambda: awaits(), id="plain function")]
)
def test_an_event_loop_awaits_coroutines(store: Any, handler: Any) -> None:
    replay = AsyncReplay(store, NAMESPACE, ttl=60)
    assert "awaited" in asyncio.run(replay.execute(KEY, PARAMS, handler)).response


@pytest.mark.parametrize("engine", TRANSACTIONAL, indirect=True)
@pytest.mark.parametrize("handler", [*GENERATORS, *COROUTINES])
def test_a_transaction_refuses_them_all(face: Any, store: Any, handler: Any) -> None:
    replay = face(store, NAMESPACE, ttl=60)
    with pytest.raises(ConfigError, match="nothing ran") as refusal:
        replay.execute_in_transaction(KEY, PARAMS, handler)
    assert "AsyncReplay" not in str(refusal.value), "it would not help"
    assert is_free(replay, store)


@pytest.mark.parametrize("engine", TRANSACTIONAL, indirect=True)
def test_a_transaction_says_what_its_handler_must_be(face: Any, store: Any) -> None:
    for handler in (awaits, functools.partial(awaits)):
        with pytest.raises(ConfigError, match="a transaction's handler is a plain function"):
            face(store, NAMESPACE, ttl=60).execute_in_transaction(KEY, PARAMS, handler)


def test_an_answer_is_replayed_whatever_the_handler_is(store: Any) -> None:
    replay = Replay(store, NAMESPACE, ttl=60)
    replay.execute(KEY, PARAMS, Handler("r"))
    assert replay.execute(KEY, PARAMS, generates).response == "r"


def in_doubt_by_anything(awaited: bool, store: Any, handler: Any, method: str = "execute") -> Any:
    """Run the very handler, not one around it, where each Exception of its own leaves doubt."""
    made = (AsyncReplay if awaited else Replay)(store, NAMESPACE, ttl=60, doubt_on=(Exception,))
    outcome = getattr(made, method)(KEY, PARAMS, handler)
    return asyncio.run(outcome) if awaited else outcome


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("handler", [None, 3, "text", object()])
@pytest.mark.parametrize("method", ["execute", "execute_in_transaction"])
def test_what_cannot_be_called_is_refused(
    transactional: Any, awaited: bool, method: str, handler: Any
) -> None:
    with pytest.raises(ConfigError, match="cannot be called: .*nothing ran"):
        in_doubt_by_anything(awaited, transactional, handler, method)
    assert is_free(Replay(transactional, NAMESPACE, ttl=60), transactional)


def needs_more(invoice: str) -> str:
    return invoice


def goes_wrong(*nothing: str) -> str:
    return needs_more(*nothing)


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize(
    "handler", [needs_more, functools.partial(needs_more, "a", "b"), Callables(0).needs_more]
)
def test_a_function_whose_call_python_refuses_has_not_begun(
    store: Any, awaited: bool, handler: Any
) -> None:
    with pytest.raises(TypeError, match="argument"):
        in_doubt_by_anything(awaited, store, handler)
    assert is_free(Replay(store, NAMESPACE, ttl=60), store)


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("handler", [goes_wrong, functools.partial(max, 1, "2")])
def test_a_function_that_calls_another_one_wrongly_has_begun(
    store: Any, awaited: bool, handler: Any
) -> None:
    with pytest.raises(InDoubtError):
        in_doubt_by_anything(awaited, store, handler)
    assert Replay(store, NAMESPACE, ttl=60).release(KEY) is True


@pytest.mark.parametrize("late", [generates, generates_awaited, awaits])
def test_a_function_that_returns_what_never_ran_may_have_done_something_before(
    make: Callable[..., Any], store: Any, late: Any
) -> None:
    effects = []

    def handler() -> Any:
        effects.append("paid")
        return late()

    replay = make()
    for error in (ResponseNotStorableError, InDoubtError):
        with pytest.raises(error):
            replay.execute(KEY, PARAMS, handler)
    assert effects == ["paid"]
    claim = decode(entry(store) or b"").claim
    assert claim is not None
    assert claim.ended_at == START


# A clock.


class BadClock:
    """Tells the time, but says or raises something else at one of its calls, or from then on."""

    def __init__(self, wrong: Any, at: int, *, for_ever: bool) -> None:
        self._wrong, self._at, self._for_ever = wrong, at, for_ever
        self.asked = 0

    def now_ms(self) -> Any:
        self.asked += 1
        if self.asked == self._at or (self._for_ever and self.asked > self._at):
            if isinstance(self._wrong, Exception):
                raise self._wrong
            return self._wrong
        return START


@pytest.mark.parametrize("for_ever", [True, False], ids=["for ever", "once"])
@pytest.mark.parametrize("wrong", [float(START), True, None, OSError("gone")], ids=repr)
@pytest.mark.parametrize("lease", [30, None])
def test_a_clock_that_fails(
    face: Any, store: Any, wrong: Any, for_ever: bool, lease: int | None
) -> None:
    failed = 0
    for at in range(1, 20):
        key = ("s", str(at))
        clock, handler = BadClock(wrong, at, for_ever=for_ever), Handler("r")
        replay = face(store, NAMESPACE, ttl=60, lease=lease, clock=clock)
        fine = face(store, NAMESPACE, ttl=60, lease=lease, wait_timeout=0)
        try:
            replay.execute(key, PARAMS, handler)
        except InDoubtError as error:
            assert handler.runs == 1
            assert error.response == "r"
            assert isinstance(error.__cause__, ConfigError | OSError)
            if entry(store, key) is not None:  # else there was no claim
                with_claim = decode(entry(store, key) or b"").claim is not None
                assert fine.release(key) is with_claim
        except (ConfigError, OSError):
            assert handler.runs == 0
            assert entry(store, key) is None
            assert fine.execute(key, OTHER, Handler("anew")).response == "anew"
        else:
            assert clock.asked < at, "the clock was right as often as it was asked"
            break
        failed += 1
    assert failed >= (2 if lease is None else 3)


# Threads.


@pytest.fixture
def no_threads() -> Iterator[Callable[[], None]]:
    """From its call on no thread can start: each would need more memory than there is."""
    yield lambda: threading.stack_size(1 << 46) and None
    threading.stack_size(0)


def test_no_thread_for_the_renewer(store: Any, no_threads: Callable[[], None]) -> None:
    replay = Replay(store, NAMESPACE, ttl=60, renew=True)
    no_threads()
    handler = Handler("never")
    with pytest.raises(RuntimeError, match="can't start new thread"):
        replay.execute(KEY, PARAMS, handler)
    assert (handler.runs, entry(store)) == (0, None)
    threading.stack_size(0)
    assert replay.execute(KEY, OTHER, Handler("anew")).response == "anew"


def test_no_thread_for_the_executor(store: Any, no_threads: Callable[[], None]) -> None:
    class NeedsAThread(OneByOne):
        """It makes no change at once."""

        reads_are_local = True

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        def check_and_put(self, *address: str, **change: Any) -> Any:
            return store.check_and_put(*address, **change)

    async def main() -> None:
        replay = AsyncReplay(NeedsAThread(), NAMESPACE, ttl=60, wait_timeout=0)
        no_threads()
        handler = Handler("never")
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await replay.execute(KEY, PARAMS, handler)
        threading.stack_size(0)
        assert (handler.runs, (await replay.lookup(("s", "other"), PARAMS))) == (0, None)
        assert (await replay.execute(KEY, OTHER, Handler("anew"))).response == "anew"

    asyncio.run(main())


def test_the_loops_own_executor_is_not_needed(store: Any) -> None:
    async def main() -> None:
        executor = ThreadPoolExecutor(1)
        asyncio.get_running_loop().set_default_executor(executor)
        executor.shutdown()
        replay = AsyncReplay(store, NAMESPACE, ttl=60)
        assert (await replay.execute(KEY, PARAMS, Handler("r"))).response == "r"

    asyncio.run(main())


# The claim's own commit.


class FailsOnce(OneByOne):
    """A store whose first change fails, before or after it has happened."""

    def __init__(self, store: Any, error: BaseException, *, happens: bool) -> None:
        self._store, self._error, self._happens = store, error, happens
        self.failed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def check_and_put(self, *address: Any, **options: Any) -> Any:
        if self.failed:
            return self._store.check_and_put(*address, **options)
        self.failed += 1
        if self._happens:
            assert self._store.check_and_put(*address, **options) == options["expected"]
        raise self._error


@pytest.mark.parametrize("happens", [True, False], ids=["it happened", "it did not happen"])
@pytest.mark.parametrize("error", [OutcomeUnknownError("?"), Interrupt(), OSError()], ids=repr)
def test_a_claim_whose_commit_fails(
    face: Any, store: Any, error: BaseException, happens: bool
) -> None:
    failing, handler = FailsOnce(store, error, happens=happens), Handler("never")
    replay = face(failing, NAMESPACE, ttl=60, wait_timeout=0)
    with pytest.raises(type(error)):
        replay.execute(KEY, PARAMS, handler)
    assert (failing.failed, handler.runs) == (1, 0)
    assert is_free(replay, store)


def test_a_take_over_whose_commit_fails_keeps_the_doubt(face: Any, store: Any) -> None:
    for happens in (True, False):
        key = ("s", str(happens))
        replay = face(store, NAMESPACE, ttl=60, wait_timeout=0)
        with pytest.raises(Interrupt):
            replay.execute(key, PARAMS, Handler(Interrupt()))
        before = entry(store, key)
        failing = FailsOnce(store, OutcomeUnknownError("?"), happens=happens)
        with pytest.raises(OutcomeUnknownError):
            face(failing, NAMESPACE, ttl=60, on_in_doubt="rerun").execute(
                key, PARAMS, Handler("never")
            )
        assert failing.failed
        assert entry(store, key) == before
        with pytest.raises(InDoubtError):
            replay.execute(key, PARAMS, Handler("never"))
