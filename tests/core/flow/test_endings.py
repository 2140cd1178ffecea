"""How a run ends without an answer: the key is free, or in doubt, whatever broke the run off."""

from __future__ import annotations

import dataclasses

import attrs
import pytest

from kvreplay import (
    NOT_APPLIED,
    ClaimLostError,
    IndeterminateError,
    InDoubtError,
    NotAppliedError,
    OutcomeUnknownError,
    ResponseNotStorableError,
    StoreFullError,
    StoreUnavailableError,
)
from kvreplay._protocol.record import decode, encode
from kvreplay._protocol.steps import Call, CheckAndPut, InDoubtPolicy, Log
from support.flow_script import NOW, OTHERS, Script, claimed, completed, executing
from support.replaying import Interrupt


def called(**policy: object) -> Script:
    """A run that has claimed its key and is about to call the handler."""
    return executing(**policy).reads(None).begins().puts()


# What a handler raises.


@pytest.mark.parametrize(
    "error",
    [
        ValueError("declined"),
        ConnectionRefusedError("nobody listens"),
        StoreUnavailableError("of the ledger"),
        NotAppliedError("declined"),
        ExceptionGroup("two", [ValueError("a"), ExceptionGroup("one", [KeyError("b")])]),
        ExceptionGroup("refused", [ConnectionRefusedError("nobody listens")]),
    ],
)
def test_an_exception_that_says_that_nothing_happened_frees_the_key(error: Exception) -> None:
    script = called()
    claim = script.stored
    script.raises(error)
    assert script.step == CheckAndPut(claim, None, event="released")
    with pytest.raises(type(error)) as raised:
        script.puts()
    assert raised.value is error


def deep(error: Exception) -> Exception:
    for _ in range(5000):
        error = ExceptionGroup("a leg", [KeyError(), error])
    return error


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("no answer"),
        ConnectionResetError("hung up"),
        OutcomeUnknownError("of the ledger"),
        InDoubtError("of a nested request"),
        ClaimLostError("of a nested request"),
        ResponseNotStorableError("of a nested request", response="of another key"),
        ExceptionGroup("legs", [IndeterminateError("leg 1"), ValueError("leg 2")]),
        ExceptionGroup("legs", [ValueError("leg 1"), ExceptionGroup("", [TimeoutError("leg 2")])]),
        ExceptionGroup("legs", [NotAppliedError("leg 1"), TimeoutError("leg 2")]),
        ExceptionGroup("legs", [ConnectionRefusedError("leg 1"), ConnectionError("leg 2")]),
        deep(TimeoutError()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_that_leaves_doubt_keeps_the_claim(error: Exception) -> None:
    script = called().raises(error)
    with pytest.raises(InDoubtError, match="resolve") as raised:
        script.ends_in_doubt()
    assert f"ended with a {type(error).__name__}, " in str(raised.value)
    assert raised.value.__cause__ is error
    assert (raised.value.retry_after, raised.value.response) == (None, None)


def test_a_handler_that_says_that_it_does_not_know_is_believed_as_it_is() -> None:
    error = IndeterminateError("the peer hung up")
    script = called().raises(error)
    with pytest.raises(IndeterminateError) as raised:
        script.ends_in_doubt()
    assert raised.value is error


def test_a_cause_leaves_no_doubt() -> None:
    error = ValueError("declined")
    error.__cause__ = TimeoutError("of an attempt before")
    assert called().raises(error).step.event == "released"


ALL = (Exception,)


@pytest.mark.parametrize(
    ("doubt_on", "error", "frees"),
    [
        ((), TimeoutError(), True),
        ((), IndeterminateError(), False),
        ((ValueError,), ValueError(), False),
        ((ValueError,), UnicodeError(), False),
        ((ValueError,), TimeoutError(), True),
        (ALL, ValueError(), False),
        (ALL, ConnectionRefusedError(), False),
        (ALL, NotAppliedError(), True),
        (ALL, ExceptionGroup("", [NotAppliedError()]), False),  # of one leg, not of all
        ((OSError,), ConnectionRefusedError(), False),
        ((ConnectionError,), ConnectionRefusedError(), True),
        ((ConnectionError, ConnectionRefusedError), ConnectionRefusedError(), False),
        ((ConnectionError,), BrokenPipeError(), False),
        ((ExceptionGroup,), ExceptionGroup("", [ValueError()]), False),
        ((NotAppliedError,), NotAppliedError(), True),
    ],
)
def test_doubt_on_names_what_leaves_doubt(
    doubt_on: tuple[type[Exception], ...], error: Exception, frees: bool
) -> None:
    script = called(doubt_on=doubt_on).raises(error)
    if frees:
        assert (script.step.value, script.step.event) == (None, "released")
    else:
        with pytest.raises(InDoubtError):
            script.ends_in_doubt()


# What breaks a run off.


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interrupt_of_the_handler_keeps_the_claim(error: BaseException) -> None:
    script = called().begin_call().fails(error)
    with pytest.raises(type(error)) as raised:
        script.ends_in_doubt()
    assert raised.value is error


def test_what_fails_beside_the_handler_leaves_doubt_once_it_has_begun() -> None:
    script = called().begin_call().fails(OSError("the clock is gone"))
    with pytest.raises(InDoubtError) as raised:
        script.ends_in_doubt()
    assert isinstance(raised.value.__cause__, OSError)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no thread")])
def test_nothing_ran_before_the_handler_has_begun(error: BaseException) -> None:
    script = called()
    claim = script.stored
    script.fails(error)
    assert script.step == CheckAndPut(claim, None, event="released")
    with pytest.raises(type(error)) as raised:
        script.puts()
    assert raised.value is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OutcomeUnknownError("?"), RuntimeError()])
@pytest.mark.parametrize("happened", [True, False])
def test_a_claim_that_may_be_stored_is_withdrawn(error: BaseException, happened: bool) -> None:
    script = executing().reads(None).begins()
    claim = script.step.value
    script.fails(error)
    assert script.step == CheckAndPut(claim, None, event="released")
    with pytest.raises(type(error)):
        script.puts(found=claim if happened else None)


def test_a_claim_that_was_refused_is_not_withdrawn() -> None:
    with pytest.raises(StoreFullError):
        executing().reads(None).begins().fails(StoreFullError("no room"))


def test_an_interrupt_of_the_completion_leaves_a_key_in_doubt_or_its_answer() -> None:
    script = called()
    claim = script.stored
    script.calls("r").fails(KeyboardInterrupt())
    script.stored = claim
    with pytest.raises(KeyboardInterrupt):
        script.ends_in_doubt()
    script = called().calls("r")
    answer = script.step.value
    script.fails(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        script.reads(answer)


def test_a_flow_that_nobody_drives_any_more_asks_for_nothing() -> None:
    script = called()
    with pytest.raises(GeneratorExit):
        script.begin_call().fails(GeneratorExit())


# What fails after it.


def test_a_claim_that_cannot_be_released_is_noted_on_the_handlers_own_exception() -> None:
    for failure in (StoreFullError("no room"), RuntimeError("no room")):
        script = called().raises(ValueError("declined"))
        with pytest.raises(ValueError, match="declined") as error:
            script.fails(failure)
        assert "in doubt: no room" in error.value.__notes__[0]


@dataclasses.dataclass(frozen=True)
class Declined(Exception):
    """It takes no note."""

    code: int


def test_a_claim_that_cannot_be_released_is_logged_if_the_exception_takes_no_note() -> None:
    failure = StoreFullError("no room")
    script = called().raises(Declined(51)).fails(failure)
    assert isinstance(script.step, Log)
    assert script.step.failure is failure
    with pytest.raises(Declined):
        script._send(None)


def test_an_end_that_cannot_be_told_is_logged() -> None:
    failure = StoreFullError("no room")
    for fail in (
        lambda script: script.fails(failure),
        lambda script: script.reads(script.stored).fails(failure),
    ):
        script = fail(called().raises(TimeoutError()))
        assert isinstance(script.step, Log)
        assert script.step.failure is failure
        with pytest.raises(InDoubtError) as error:
            script._send(None)
        assert isinstance(error.value.__cause__, TimeoutError)


@pytest.mark.parametrize("found", [None, completed(), claimed(), *OTHERS])
def test_an_end_is_not_told_of_another_owners_record(found: bytes | None) -> None:
    with pytest.raises(IndeterminateError):
        called().raises(IndeterminateError()).reads(found)


def moved(claim: bytes, lease_expires_at: int = NOW * 2) -> bytes:
    """The same claim, after a renewal."""
    record = decode(claim)
    assert record.claim is not None
    later = attrs.evolve(record.claim, lease_expires_at=lease_expires_at)
    return encode(attrs.evolve(record, claim=later))


def test_an_end_is_told_of_a_claim_whose_renewal_seemed_to_fail() -> None:
    script = called()
    script.stored = moved(script.stored)
    with pytest.raises(IndeterminateError):
        script.raises(IndeterminateError()).ends_in_doubt(now=NOW + 7)


@pytest.mark.parametrize("lease_expires_at", [NOW * 2, NOW + 1])  # or the clock was set back
def test_a_claim_whose_renewal_seemed_to_fail_is_released(lease_expires_at: int) -> None:
    script = called()
    claim = moved(script.stored, lease_expires_at)
    script.raises(ValueError("declined")).puts(found=claim)
    assert script.step == CheckAndPut(claim, None, event="released")
    with pytest.raises(ValueError, match="declined"):
        script.puts()


@pytest.mark.parametrize("found", [None, completed(), claimed(), *OTHERS])
def test_another_owners_record_is_not_released(found: bytes | None) -> None:
    with pytest.raises(ValueError, match="declined"):
        called().raises(ValueError("declined")).puts(found=found)


# A second run.


def rerunning() -> Script:
    script = executing(on_in_doubt=InDoubtPolicy.RERUN).reads(claimed()).probes(runs=False)
    return script.begins().puts()


@pytest.mark.parametrize("error", [ValueError("declined"), NotAppliedError("declined")])
def test_a_rerun_that_raises_says_nothing_about_the_run_before(error: Exception) -> None:
    script = rerunning()
    own = script.stored
    script.raises(error)
    assert script.step == CheckAndPut(own, claimed(), event="in_doubt")
    with pytest.raises(type(error)):
        script.puts()


def test_a_rerun_whose_renewal_seemed_to_fail_says_nothing_about_the_run_before() -> None:
    script = rerunning()
    own = moved(script.stored)
    script.raises(ValueError("declined")).puts(found=own)
    assert script.step == CheckAndPut(own, claimed(), event="in_doubt")
    with pytest.raises(ValueError, match="declined"):
        script.puts()


def test_a_rerun_that_never_began_says_nothing_about_the_run_before() -> None:
    for script in (rerunning(), rerunning()):
        own = script.stored
        script.fails(RuntimeError("no thread"))
        assert script.step == CheckAndPut(own, claimed(), event="in_doubt")
    script = executing(on_in_doubt=InDoubtPolicy.RERUN).reads(claimed()).probes(runs=False).begins()
    own = script.step.value
    script.fails(OutcomeUnknownError("?"))
    assert script.step == CheckAndPut(own, claimed(), event="in_doubt")


def test_a_rerun_may_end_in_doubt_itself() -> None:
    with pytest.raises(InDoubtError):
        rerunning().raises(TimeoutError()).ends_in_doubt()


def test_a_run_after_a_reconciler_has_excluded_the_one_before_frees_the_key() -> None:
    script = executing(on_in_doubt=InDoubtPolicy.RECONCILE).reads(claimed()).probes(runs=False)
    script.reads(claimed()).reconciles(NOT_APPLIED).begins().puts()
    assert isinstance(script.step, Call)
    assert script.raises(ValueError("declined")).step.value is None


# Without a claim there is nothing to keep.


@pytest.mark.parametrize("error", [TimeoutError(), IndeterminateError(), Interrupt()])
def test_without_a_lease_every_exception_propagates(error: BaseException) -> None:
    script = executing(lease=None).reads(None)
    with pytest.raises(type(error)):
        script.raises(error) if isinstance(error, Exception) else script.fails(error)


def test_without_a_lease_it_is_told_whether_the_handler_ran() -> None:
    clock = OSError("the clock is gone")
    with pytest.raises(OSError, match="clock"):
        executing(lease=None).reads(None).fails(clock)
    with pytest.raises(InDoubtError, match="the handler ran") as error:
        executing(lease=None).reads(None).begin_call().fails(clock)
    assert error.value.__cause__ is clock
