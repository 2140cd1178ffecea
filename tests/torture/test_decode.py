"""Bytes that nobody wrote: random ones, and records that were mutated and sealed again."""

from __future__ import annotations

import zlib
from typing import Any

import msgpack
from hypothesis import event, given, settings
from hypothesis import strategies as st

from kvreplay import InvalidParamsError, RecordError, ReplayKey, ReplayRecord
from kvreplay._protocol.digests import ParamsDigest
from kvreplay._protocol.flow import Decision, decide
from kvreplay._protocol.params import canonical
from kvreplay._protocol.record import Claim, State, answer_in, decode, encode

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TIMES = st.integers(0, 2**63)
KEYS = st.builds(ReplayKey, TEXT, TEXT.filter(bool))
CLAIMS = st.builds(Claim, st.binary(min_size=16, max_size=16), TIMES, TEXT, st.none() | TIMES)
DIGESTS = st.builds(
    ParamsDigest, st.binary(min_size=8, max_size=8), st.binary(min_size=32, max_size=32)
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | TEXT
    | st.binary(max_size=20)
    | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=8))
    | st.builds(msgpack.Timestamp, st.integers(0, 2**34), st.integers(0, 10**9 - 1))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(TEXT | st.binary(), inner, max_size=4)
    ),
    max_leaves=12,
)


@st.composite
def records(draw: st.DrawFn) -> ReplayRecord:
    state = draw(st.sampled_from(State))
    answered, claimed = state in (State.COMPLETED, State.FAILED), state is State.IN_PROGRESS
    return ReplayRecord(
        state,
        draw(KEYS),
        draw(st.binary(max_size=40) | DIGESTS),
        draw(st.binary(max_size=40)) if answered else None,
        draw(TIMES),
        None if claimed else draw(TIMES),
        draw(CLAIMS) if claimed else None,
    )


def seal(body: bytes) -> bytes:
    return body + b"\xce" + zlib.crc32(body).to_bytes(4, "big")


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A record with a few of its fields or bytes changed, and a right checksum."""
    data = encode(draw(records()))
    if draw(st.booleans()):
        fields = msgpack.unpackb(data)
        for _ in range(draw(st.integers(1, 3))):
            at = draw(st.integers(0, len(fields) - 1))
            match draw(st.sampled_from(["replace", "insert", "delete"])):
                case "replace":
                    fields[at] = draw(VALUES)
                case "insert":
                    fields.insert(at, draw(VALUES))
                case "delete" if len(fields) > 1:
                    del fields[at]
        fields[-1:] = [0xFFFFFFFF]
        return seal(msgpack.packb(fields)[:-5])
    body = bytearray(data[:-5])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(body)))
        body[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return seal(bytes(body))


def hold(data: bytes, key: ReplayKey, params: bytes, now: int) -> None:
    """Never anything but a RecordError; and the short way to an answer agrees with the long one."""
    short = answer_in(data, key.scope, key.id, params, now)
    try:
        record = decode(data, key)
    except RecordError as error:
        event(type(error).__name__)
        assert short is None
        return
    event("a record")
    assert decode(encode(record)) == record
    if isinstance(record.params, ParamsDigest):
        assert short is None, "these bytes are no digest"
        return
    replays = decide(record, params, now) is Decision.REPLAY and record.state is State.COMPLETED
    assert (short and short[0]) == (record.response if replays else None)


@given(st.binary(max_size=300), KEYS)
def test_random_bytes(tally: Any, data: bytes, key: ReplayKey) -> None:
    for candidate in (data, seal(data), b"\x9a\x01\x02" + data, seal(b"\x9a\x01\x02" + data)):
        hold(candidate, key, b"", 0)
        tally("inputs to decode", "random")


@given(mutations(), st.data())
def test_mutated_records(tally: Any, mutated: bytes, data: st.DataObject) -> None:
    """Even when asked for with the mutation's own key, params and time."""
    try:
        fields: Any = msgpack.unpackb(mutated)
        key, params = ReplayKey(fields[2], fields[3]), bytes(memoryview(fields[4]))
    except Exception:  # it is not even a list, or names no key: any will do
        key, params = ReplayKey("lsp", "session"), b""
    hold(mutated, key, params, data.draw(st.just(0) | TIMES))
    tally("inputs to decode", "mutated")


@given(records(), TIMES, st.booleans())
def test_records_come_back(tally: Any, record: ReplayRecord, now: int, others: bool) -> None:
    data = encode(record)
    assert decode(data, record.key) == record
    own = record.params if isinstance(record.params, bytes) else b"digested"
    hold(data, record.key, b"others" if others else own, now)
    tally("inputs to decode", "intact")


ANYTHING = st.recursive(
    SCALARS
    | st.text(max_size=5)
    | st.integers()
    | st.complex_numbers()
    | st.sets(st.integers(), max_size=3)
    | st.builds(object)
    | st.builds(bytearray),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(SCALARS | st.tuples(st.integers()), inner, max_size=4)
    ),
    max_leaves=15,
)


@settings(max_examples=settings.default.max_examples // 10)  # large ones, and slow to draw
@given(ANYTHING)
def test_params_are_encoded_or_refused(tally: Any, params: Any) -> None:
    tally("params to encode", "any object")
    try:
        packed = canonical(params)
    except InvalidParamsError:
        event("refused")
        return
    event("encoded")
    assert canonical(msgpack.unpackb(packed, strict_map_key=False)) == packed
