"""Each way that a request ends, as a scene: what was before, and the request itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import attrs

from kvreplay import (
    NOT_APPLIED,
    Applied,
    IndeterminateError,
    InvalidParamsError,
    NotAppliedError,
    NotStored,
    ReplayKey,
    ReplayRecord,
    State,
    StoreFullError,
    Unknown,
)
from kvreplay._protocol.params import canonical
from kvreplay._protocol.record import Claim, encode, encode_response
from kvreplay._runtime.singleflight import flights
from kvreplay.testing import FaultyStore
from support.final_failures import Declined
from support.joinable import JoinableStore
from support.replaying import START, Caller, FakeClock, Handler, never
from support.requesting import KEY, NAMESPACE, OTHER, PARAMS, abandon

__all__ = ["ANSWER", "FINAL", "RUNS", "Stage", "elsewhere"]

FINAL = {"store_errors": (Declined,)}


@attrs.frozen
class Offer:
    msat: int


@attrs.define
class Stage:
    """What one request is made of: the replay, its store, the clock."""

    make_on: Callable[..., Any]
    store: FaultyStore
    clock: FakeClock
    replay: Any = None
    after: Callable[[], object] = lambda: None

    def open(self, **settings: Any) -> Any:
        self.replay = self.make_on(self.store, **settings)
        return self.replay

    def run(self, *responses: Any, **options: Any) -> Any:
        return self.replay.execute(KEY, PARAMS, Handler(*responses), **options)

    def look(self, params: Any = PARAMS, **options: Any) -> Any:
        return self.replay.lookup(KEY, params, **options)

    def put(self, data: bytes) -> None:
        self.store.inner.write(NAMESPACE, *KEY, data)


# What was before, and the request. The name begins with how the request must end.


def elsewhere() -> bytes:
    claim = Claim(b"t" * 16, START + 30_000, "elsewhere:1:1:1:1:1:1")
    key = ReplayKey(*KEY)
    return encode(ReplayRecord(State.IN_PROGRESS, key, canonical(PARAMS), None, START, None, claim))


ANSWER = encode(
    ReplayRecord(
        *(State.COMPLETED, ReplayKey(*KEY), canonical(PARAMS), encode_response("r", "")),
        *(START, START + 60_000, None),
    )
)


def answered(stage: Stage, response: Any = "r", **settings: Any) -> None:
    stage.open(**settings)
    with contextlib.suppress(Declined):
        stage.run(response)


def doubted(stage: Stage, **settings: Any) -> None:
    abandon(stage.make_on(stage.store))
    stage.open(**settings)


def failing(stage: Stage, after: int = 0, times: int = 1, **options: Any) -> None:
    stage.store.fail(StoreFullError("no room"), after=after, times=times, **options)


def overtake(stage: Stage, end: Any) -> Callable[[], Any]:
    def handler() -> Any:
        stage.put(b"another's")
        if isinstance(end, Exception):
            raise end
        return end

    return handler


RUNS: dict[str, Callable[[Stage], object]] = {}


def ends_with(kind: str) -> Callable[[Any], Any]:
    def add(scene: Callable[[Stage], object]) -> Any:
        RUNS[f"{kind}: {scene.__name__}"] = scene
        return scene

    return add


@ends_with("completed")
def an_answer(stage: Stage) -> object:
    stage.open()
    return lambda: stage.run("r")


@ends_with("completed")
def a_typed_answer(stage: Stage) -> object:
    stage.open()
    return lambda: stage.run(Offer(1), returns=Offer)


@ends_with("completed")
def without_a_claim(stage: Stage) -> object:
    stage.open(lease=None)
    return lambda: stage.run("r")


@ends_with("completed")
def a_rerun(stage: Stage) -> object:
    doubted(stage, on_in_doubt="rerun")
    return lambda: stage.run("r")


@ends_with("completed")
def a_reconcilers_permission(stage: Stage) -> object:
    doubted(stage, on_in_doubt=lambda record: NOT_APPLIED)
    return lambda: stage.run("r")


@ends_with("completed")
def an_expired_answer_run_anew(stage: Stage) -> object:
    answered(stage, on_expired="rerun")
    stage.clock.pass_seconds(60)
    return lambda: stage.run("again")


@ends_with("failed")
def a_final_failure(stage: Stage) -> object:
    stage.open(**FINAL)
    return lambda: stage.run(Declined())


@ends_with("failed")
def a_final_failure_without_a_claim(stage: Stage) -> object:
    stage.open(**FINAL, lease=None)
    return lambda: stage.run(Declined())


@ends_with("replayed")
def a_hit(stage: Stage) -> object:
    answered(stage)
    return lambda: stage.run("never")


@ends_with("replayed")
def a_typed_hit(stage: Stage) -> object:
    stage.open()
    stage.run(Offer(1), returns=Offer)
    return lambda: stage.run("never", returns=Offer)


@ends_with("replayed")
def a_digested_hit(stage: Stage) -> object:
    answered(stage, params_key=b"k" * 16)
    return lambda: stage.run("never")


@ends_with("replayed")
def a_lookup(stage: Stage) -> object:
    answered(stage)
    return lambda: stage.look()


@ends_with("replayed")
def a_stored_failure(stage: Stage) -> object:
    answered(stage, Declined(), **FINAL)
    return lambda: stage.run("never")


@ends_with("replayed")
def a_stored_failure_of_a_class_that_is_not_listed(stage: Stage) -> object:
    answered(stage, Declined(), **FINAL)
    stage.open()
    return lambda: stage.run("never")


@ends_with("replayed")
def a_lookup_of_a_stored_failure(stage: Stage) -> object:
    answered(stage, Declined(), **FINAL)
    return lambda: stage.look()


@ends_with("replayed")
def a_reconciled_answer(stage: Stage) -> object:
    doubted(stage, on_in_doubt=lambda record: Applied("found"))
    return lambda: stage.run("never")


@ends_with("replayed")
def another_owners_answer_without_a_claim(stage: Stage) -> object:
    stage.open(lease=None)

    def handler() -> Any:
        flights.table.clear()  # as in another process
        Caller(stage.make_on(stage.store, on_event=None).execute, KEY, PARAMS, Handler("r")).end()
        return "slower"

    return lambda: stage.replay.execute(KEY, PARAMS, handler)


def in_a_transaction(stage: Stage, response: Any, **settings: Any) -> Callable[[], object]:
    """A request in a transaction that its caller has begun."""
    joinable = JoinableStore(stage.store)
    stage.replay = stage.make_on(joinable, **settings)
    connection, handler = joinable.connect().begin(), Handler(response)
    return lambda: stage.replay.execute_in_transaction(
        KEY, PARAMS, lambda connection: handler(), connection=connection
    )


@ends_with("joined")
def an_answer_in_a_transaction_of_the_callers_own(stage: Stage) -> object:
    return in_a_transaction(stage, "r")


@ends_with("joined")
def a_final_failure_in_a_transaction_of_the_callers_own(stage: Stage) -> object:
    return in_a_transaction(stage, Declined(), **FINAL)


@ends_with("joined")
def a_reconciled_answer_in_a_transaction_of_the_callers_own(stage: Stage) -> object:
    doubted(stage)
    return in_a_transaction(stage, "never", on_in_doubt=lambda record: Applied("found"))


@ends_with("replayed")
def an_answer_that_a_transaction_of_the_callers_own_sees(stage: Stage) -> object:
    answered(stage)
    return in_a_transaction(stage, "never")


@ends_with("released")
def an_exception_in_a_transaction_of_the_callers_own(stage: Stage) -> object:
    return in_a_transaction(stage, ValueError())


@ends_with("released")
def an_answer_that_is_not_kept_in_a_transaction_of_the_callers_own(stage: Stage) -> object:
    return in_a_transaction(stage, NotStored("r"))


@ends_with("store_error")
def a_store_that_fails_in_a_transaction_of_the_callers_own(stage: Stage) -> object:
    request = in_a_transaction(stage, "never")
    failing(stage, on="read")
    return request


@ends_with("released")
def an_exception(stage: Stage) -> object:
    stage.open()
    return lambda: stage.run(ValueError())


@ends_with("released")
def an_exception_without_a_claim(stage: Stage) -> object:
    stage.open(lease=None)
    return lambda: stage.run(ValueError())


@ends_with("released")
def nothing_applied(stage: Stage) -> object:
    stage.open(doubt_on=(Exception,))
    return lambda: stage.run(NotAppliedError())


@ends_with("released")
def an_error_of_kvreplay_that_the_handler_raises(stage: Stage) -> object:
    stage.open()
    return lambda: stage.run(InvalidParamsError("of something else"))


@ends_with("released")
def a_store_error_that_the_handler_raises(stage: Stage) -> object:
    stage.open()
    return lambda: stage.run(StoreFullError("another store"))


@ends_with("released")
def an_answer_that_is_not_kept(stage: Stage) -> object:
    stage.open()
    return lambda: stage.run(NotStored("r"))


@ends_with("released")
def an_answer_that_is_not_kept_without_a_claim(stage: Stage) -> object:
    stage.open(lease=None)
    return lambda: stage.run(NotStored("r"))


@ends_with("released")
def an_answer_that_is_not_kept_and_no_msgpack(stage: Stage) -> object:
    stage.open()
    return lambda: stage.run(NotStored(object()))


@ends_with("released")
def a_closed_replay(stage: Stage) -> object:
    stage.open().close()
    return lambda: stage.run("never")


@ends_with("released")
def a_closed_replay_without_a_claim(stage: Stage) -> object:
    stage.open(lease=None).close()
    return lambda: stage.run("never")


@ends_with("params_mismatch")
def other_params(stage: Stage) -> object:
    answered(stage)
    return lambda: stage.replay.execute(KEY, OTHER, never)


@ends_with("params_mismatch")
def a_lookup_with_other_params(stage: Stage) -> object:
    answered(stage)
    return lambda: stage.look(OTHER)


@ends_with("params_mismatch")
def other_params_than_those_in_doubt(stage: Stage) -> object:
    doubted(stage)
    return lambda: stage.replay.execute(KEY, OTHER, never)


@ends_with("expired")
def an_expired_answer(stage: Stage) -> object:
    answered(stage)
    stage.clock.pass_seconds(60)
    return lambda: stage.run("never")


@ends_with("expired")
def a_lookup_of_a_tombstone(stage: Stage) -> object:
    answered(stage, tombstone_ttl=100)
    stage.clock.pass_seconds(60)
    with contextlib.suppress(Exception):
        stage.look()
    return lambda: stage.look()


@ends_with("in_flight")
def a_run_elsewhere(stage: Stage) -> object:
    stage.open()
    stage.put(elsewhere())
    return lambda: stage.run("never", wait_timeout=0)


@ends_with("in_flight")
def a_run_elsewhere_that_takes_too_long(stage: Stage) -> object:
    stage.open()
    stage.put(elsewhere())
    return lambda: stage.run("never", wait_timeout="3ms")


@ends_with("in_flight")
def a_lookup_of_a_run_elsewhere(stage: Stage) -> object:
    stage.open()
    stage.put(elsewhere())
    return lambda: stage.look()


def running_here(stage: Stage) -> None:
    stage.open()
    handler = Handler("r", held=True)
    other = stage.make_on(stage.store, on_event=None)
    caller = Caller(other.execute, KEY, PARAMS, handler)
    assert handler.started.wait(30)

    def after() -> None:
        handler.let_go()
        caller.result()

    stage.after = after


@ends_with("in_flight")
def a_run_here(stage: Stage) -> object:
    running_here(stage)
    return lambda: stage.run("never", wait_timeout="3ms")


@ends_with("in_flight")
def a_lookup_of_a_run_here(stage: Stage) -> object:
    running_here(stage)
    return lambda: stage.look()


@ends_with("params_mismatch")
def a_run_here_with_other_params(stage: Stage) -> object:
    running_here(stage)
    return lambda: stage.replay.execute(KEY, OTHER, never)


@ends_with("params_mismatch")
def a_lookup_of_a_run_here_with_other_params(stage: Stage) -> object:
    running_here(stage)
    return lambda: stage.look(OTHER)


@ends_with("in_doubt")
def a_doubt(stage: Stage) -> object:
    doubted(stage)
    return lambda: stage.run("never")


@ends_with("in_doubt")
def a_lookup_of_a_doubt(stage: Stage) -> object:
    doubted(stage)
    return lambda: stage.look()


@ends_with("in_doubt")
def a_reconciler_that_does_not_know(stage: Stage) -> object:
    doubted(stage, on_in_doubt=lambda record: Unknown())
    return lambda: stage.run("never")


@ends_with("in_doubt")
def a_reconciler_that_raises(stage: Stage) -> object:
    doubted(stage, on_in_doubt=never)
    return lambda: stage.run("never")


@ends_with("in_doubt")
def a_reconciler_without_a_verdict(stage: Stage) -> object:
    doubted(stage, on_in_doubt=lambda record: "who knows")
    return lambda: stage.run("never")


@ends_with("in_doubt")
def a_reconcilers_answer_that_is_no_msgpack(stage: Stage) -> object:
    doubted(stage, on_in_doubt=lambda record: Applied(object()))
    return lambda: stage.run("never")


@ends_with("in_doubt")
def a_rerun_that_raises(stage: Stage) -> object:
    doubted(stage, on_in_doubt="rerun")
    return lambda: stage.run(ValueError())


@ends_with("in_doubt")
def a_rerun_that_fails_finally(stage: Stage) -> object:
    doubted(stage, on_in_doubt="rerun", **FINAL)
    return lambda: stage.run(Declined())


@ends_with("in_doubt")
def a_rerun_whose_answer_is_not_kept(stage: Stage) -> object:
    doubted(stage, on_in_doubt="rerun")
    return lambda: stage.run(NotStored("r"))


@ends_with("doubt_begun")
def an_exception_of_doubt(stage: Stage) -> object:
    stage.open()
    return lambda: stage.run(TimeoutError())


@ends_with("doubt_begun")
def an_indeterminate_end(stage: Stage) -> object:
    stage.open()
    return lambda: stage.run(IndeterminateError())


@ends_with("doubt_begun")
def an_answer_that_is_no_msgpack(stage: Stage) -> object:
    stage.open()
    return lambda: stage.run(object())


@ends_with("doubt_begun")
def a_store_that_does_not_take_the_answer(stage: Stage) -> object:
    stage.open()
    failing(stage, after=1)
    return lambda: stage.run("r")


@ends_with("doubt_begun")
def a_store_that_does_not_take_the_answer_nor_the_doubt(stage: Stage) -> object:
    stage.open()
    failing(stage, after=1, times=2)
    return lambda: stage.run("r")


@ends_with("doubt_begun")
def a_store_that_does_not_take_the_doubt(stage: Stage) -> object:
    stage.open()
    failing(stage, after=1)
    return lambda: stage.run(IndeterminateError())


@ends_with("doubt_begun")
def a_store_that_does_not_take_the_failure(stage: Stage) -> object:
    stage.open(**FINAL)
    failing(stage, after=1)
    return lambda: stage.run(Declined())


@ends_with("doubt_begun")
def a_store_that_does_not_free_the_key(stage: Stage) -> object:
    stage.open()
    failing(stage, after=1)
    return lambda: stage.run(ValueError())


@ends_with("doubt_begun")
def a_store_that_does_not_take_an_answer_without_a_claim(stage: Stage) -> object:
    stage.open(lease=None)
    failing(stage)
    return lambda: stage.run("r")


@ends_with("claim_lost")
def an_answer_that_comes_too_late(stage: Stage) -> object:
    stage.open()
    return lambda: stage.replay.execute(KEY, PARAMS, overtake(stage, "r"))


@ends_with("claim_lost")
def a_failure_that_comes_too_late(stage: Stage) -> object:
    stage.open(**FINAL)
    return lambda: stage.replay.execute(KEY, PARAMS, overtake(stage, Declined()))


@ends_with("claim_lost")
def an_exception_that_comes_too_late(stage: Stage) -> object:
    stage.open()
    return lambda: stage.replay.execute(KEY, PARAMS, overtake(stage, ValueError()))


@ends_with("corrupt_record")
def a_damaged_record(stage: Stage) -> object:
    stage.open()
    stage.put(b"damaged")
    return lambda: stage.run("never")


@ends_with("corrupt_record")
def a_lookup_of_a_damaged_record(stage: Stage) -> object:
    stage.open()
    stage.put(b"damaged")
    return lambda: stage.look()


@ends_with("response_type")
def an_answer_of_another_type(stage: Stage) -> object:
    answered(stage)
    return lambda: stage.run("never", returns=Offer)


@ends_with("response_type")
def a_lookup_of_another_type(stage: Stage) -> object:
    answered(stage)
    return lambda: stage.look(returns=Offer)


@ends_with("store_error")
def a_store_that_does_not_read(stage: Stage) -> object:
    stage.open()
    failing(stage, on="read", times=9)
    return lambda: stage.run("never")


@ends_with("store_error")
def a_lookup_in_a_store_that_does_not_read(stage: Stage) -> object:
    stage.open()
    failing(stage, on="read", times=9)
    return lambda: stage.look()


@ends_with("store_error")
def a_store_that_takes_no_claim(stage: Stage) -> object:
    stage.open()
    failing(stage, times=9)
    return lambda: stage.run("never")
