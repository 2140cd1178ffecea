"""A flow that is driven by hand, and the records that it meets."""

from __future__ import annotations

from typing import Any

import attrs

from kvreplay import ReplayKey, ReplayRecord
from kvreplay._protocol.failures import encode_failure
from kvreplay._protocol.flow import execute, execute_in_transaction, settle
from kvreplay._protocol.params import canonical
from kvreplay._protocol.record import Claim, State, decode, encode, encode_response
from kvreplay._protocol.steps import (
    BEGIN,
    READ,
    Call,
    CheckAndPut,
    Flow,
    InDoubtPolicy,
    Policy,
    Probe,
    Raised,
    Reconcile,
    Request,
    Returned,
    Transact,
    Wait,
)
from support.final_failures import Declined

KEY = ReplayKey("lsp", "session")
PARAMS = canonical({"amount": 1})
OTHER = canonical({"amount": 2})
NOW = 1_000_000
TOKEN = b"T" * 16
POLICY = Policy(
    lease=30_000,
    tombstone_ttl=0,
    on_in_doubt=InDoubtPolicy.RAISE,
    max_record_bytes=10_000,
    doubt_on=(TimeoutError, ConnectionError),
)
REQUEST = Request(KEY, PARAMS, ttl=60_000)
OTHERS = [b"", b"\xff"]  # what another may have stored: less than any record, or greater


def completed(params: bytes = PARAMS, expires_at: int = NOW + 1, response: object = "r") -> bytes:
    return encode(record(State.COMPLETED, params, expires_at, encode_response(response, "")))


def claimed(
    params: bytes = PARAMS,
    lease_expires_at: int = NOW + 1,
    token: bytes = b"C" * 16,
    ended_at: int | None = None,
) -> bytes:
    claim = Claim(token, lease_expires_at, "owner", ended_at)
    return encode(ReplayRecord(State.IN_PROGRESS, KEY, params, None, NOW - 5, None, claim))


def failed(error: Exception | None = None, expires_at: int = NOW + 1) -> bytes:
    """A final failure; by default the one that ``Declined()`` is."""
    packed = encode_failure(Declined() if error is None else error)
    return encode(record(State.FAILED, PARAMS, expires_at, packed))


def tombstone(expires_at: int = NOW + 1) -> bytes:
    return encode(record(State.TOMBSTONE, b"", expires_at, None))


def record(state: State, params: bytes, expires_at: int, response: bytes | None) -> ReplayRecord:
    return ReplayRecord(state, KEY, params, response, NOW - 10, expires_at, None)


class Script:
    """Drives a flow by hand: each expectation names the step and gives its answer."""

    def __init__(self, flow: Flow[Any]) -> None:
        self._flow = flow
        self.step: Any = next(flow)
        self.result: Any = None
        self.stored: Any = None  # what the last put that succeeded has stored

    def reads(self, found: bytes | None, now: int = NOW) -> Script:
        assert self.step is READ
        return self._send((found, now))

    def begins(self) -> Script:
        assert self.step is BEGIN
        return self._send((TOKEN, "me"))

    def probes(self, runs: bool | None) -> Script:
        assert isinstance(self.step, Probe)
        return self._send(runs)

    def puts(self, found: bytes | type | None = bytes, now: int = NOW) -> Script:
        """Answer a check-and-put; by default it succeeds."""
        assert isinstance(self.step, CheckAndPut)
        if found is bytes:
            self.stored = self.step.value
        return self._send((self.step.expected if found is bytes else found, now))

    def transacts(self, found: object) -> Script:
        """Answer with what the flow inside the transaction returned."""
        assert isinstance(self.step, Transact)
        return self._send(found)

    def calls(self, response: object, now: int = NOW) -> Script:
        self.begin_call()
        return self._send((Returned(response), now))

    def raises(self, error: Exception) -> Script:
        self.begin_call()
        return self._send((Raised(error), NOW))

    def begin_call(self) -> Script:
        assert isinstance(self.step, Call)
        self.step.begun = True
        return self

    def ends_in_doubt(self, now: int = NOW) -> Script:
        """Expect that the stored claim is read, and replaced by one that says that its run ended."""
        stored = self.stored
        self.reads(stored, now)
        assert self.step.expected == stored
        before, after = decode(stored), decode(self.step.value)
        assert before.claim is not None
        ended = attrs.evolve(before.claim, ended_at=now)
        assert after == attrs.evolve(before, claim=ended)
        assert self.step.event == "doubt_begun"
        return self.puts(now=now)

    def waits(self) -> int:
        """Answer that it has waited; return for how long (ms) it wanted to."""
        assert isinstance(self.step, Wait)
        delay = self.step.delay
        self._send(True)
        return delay

    def has_no_time_to_wait(self) -> Script:
        assert isinstance(self.step, Wait)
        return self._send(False)

    def reconciles(self, verdict: object) -> Script:
        assert isinstance(self.step, Reconcile)
        return self._send((verdict, NOW))

    def fails(self, error: BaseException) -> Script:
        self.step = self._flow.throw(error)
        return self

    def _send(self, answer: object) -> Script:
        try:
            self.step = self._flow.send(answer)
        except StopIteration as returned:
            self.step, self.result = None, returned.value
        return self


def executing(**policy: Any) -> Script:
    return Script(execute(REQUEST, attrs.evolve(POLICY, **policy)))


def transacting(**policy: Any) -> Script:
    return Script(execute_in_transaction(REQUEST, attrs.evolve(POLICY, **policy)))


def settling(response: bytes | None = None, seen: ReplayRecord | None = None) -> Script:
    return Script(settle(KEY, response, 60_000, POLICY, seen))
