"""The stored record: golden bytes, and nothing damaged is ever an answer."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import attrs
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvreplay import (
    CorruptRecordError,
    InvalidResponseError,
    RecordError,
    ReplayKey,
    ReplayRecord,
    UnsupportedRecordVersionError,
)
from kvreplay._protocol.record import (
    Claim,
    State,
    answer_in,
    decode,
    decode_response,
    encode,
    encode_response,
)

KEY = ReplayKey("02ab", "session-1")
CLAIM = Claim(bytes(range(16)), 1_700_000_030_000, "boot:1:2:3")
IN_PROGRESS = ReplayRecord(
    State.IN_PROGRESS, KEY, b"\x81\xa1a\x01", None, 1_700_000_000_000, None, CLAIM
)
ENDED = attrs.evolve(IN_PROGRESS, claim=attrs.evolve(CLAIM, ended_at=1_700_000_001_000))
COMPLETED = ReplayRecord(
    State.COMPLETED, KEY, b"\x81\xa1a\x01", b"\xa2ok", 1_700_000_000_000, 1_700_003_600_000, None
)
TOMBSTONE = ReplayRecord(
    State.TOMBSTONE, KEY, b"", None, 1_700_000_000_000, 1_700_003_600_000, None
)
OF_AN_OPERATION = attrs.evolve(COMPLETED, key=ReplayKey("02ab", "session-1", "refund"))
RECORDS = {
    "in progress": IN_PROGRESS,
    "ended": ENDED,
    "completed": COMPLETED,
    "tombstone": TOMBSTONE,
}
each_record = pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)

# Version 1, pinned: these bytes are in users' stores.
GOLDEN = {
    "in progress": (
        "9a0101a430326162a973657373696f6e2d31c40481a16101c0cf0000018bcfe56800c094c4100001"
        "02030405060708090a0b0c0d0e0fcf0000018bcfe5dd30aa626f6f743a313a323a33c0cee3957f59"
    ),
    "ended": (
        "9a0101a430326162a973657373696f6e2d31c40481a16101c0cf0000018bcfe56800c094c4100001"
        "02030405060708090a0b0c0d0e0fcf0000018bcfe5dd30aa626f6f743a313a323a33cf0000018bcf"
        "e56be8ce6cb80473"
    ),
    "completed": (
        "9a0102a430326162a973657373696f6e2d31c40481a16101c403a26f6bcf0000018bcfe56800cf00"
        "00018bd01c5680c0ce262ff233"
    ),
    "tombstone": (
        "9a0103a430326162a973657373696f6e2d31c400c0cf0000018bcfe56800cf0000018bd01c5680c0cee57480fc"
    ),
}


def sealed(fields: Any) -> bytes:
    """Any msgpack value with a right checksum in its last five bytes."""
    body = msgpack.packb(fields)[:-5]
    return bytes(body + b"\xce" + zlib.crc32(body).to_bytes(4, "big"))


def fields_of(record: ReplayRecord) -> list[Any]:
    return [*msgpack.unpackb(encode(record))[:-1], 0xFFFFFFFF]


@pytest.mark.parametrize("name", RECORDS)
def test_golden_bytes_of_version_1(name: str) -> None:
    assert encode(RECORDS[name]).hex() == GOLDEN[name]
    assert decode(bytes.fromhex(GOLDEN[name]), KEY) == RECORDS[name]


@each_record
def test_every_flipped_bit_is_noticed(record: ReplayRecord) -> None:
    data = encode(record)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptRecordError):
            decode(bytes(flipped), KEY)


@each_record
def test_a_record_cut_short_or_prolonged_is_noticed(record: ReplayRecord) -> None:
    data = encode(record)
    for length in range(len(data)):
        with pytest.raises(CorruptRecordError):
            decode(data[:length], KEY)
    with pytest.raises(CorruptRecordError):
        decode(data + b"\x00", KEY)


def test_a_record_of_another_key_is_no_answer() -> None:
    data = encode(COMPLETED)
    assert decode(data) == COMPLETED
    for other in (ReplayKey("02ab", "session-2"), ReplayKey("02ac", "session-1")):
        with pytest.raises(CorruptRecordError, match="another key"):
            decode(data, other)


def test_the_key_of_an_operation_is_another_key() -> None:
    golden = (
        "9a0102a43032616292a6726566756e64a973657373696f6e2d31c40481a16101c403a26f6bcf0000018bcfe5"
        "6800cf0000018bd01c5680c0ce4a7ea5c4"
    )
    assert encode(OF_AN_OPERATION).hex() == golden
    data = bytes.fromhex(golden)
    assert decode(data, OF_AN_OPERATION.key) == OF_AN_OPERATION
    assert answered(data, id_=["refund", "session-1"]) == COMPLETED.response
    for other in (KEY, ReplayKey("02ab", "session-1", "invoice")):
        with pytest.raises(CorruptRecordError, match="another key"):
            decode(data, other)
    assert answered(data) is None
    assert answered(data, id_=["invoice", "session-1"]) is None
    assert answered(encode(COMPLETED), id_=["refund", "session-1"]) is None


def test_a_newer_version_is_told_from_damage() -> None:
    newer = sealed([2, "what", "version", 2, "holds", 0xFFFFFFFF])
    with pytest.raises(UnsupportedRecordVersionError, match="version 2"):
        decode(newer, KEY)
    with pytest.raises(CorruptRecordError):
        decode(newer[:-1] + bytes([newer[-1] ^ 1]), KEY)


@each_record
@pytest.mark.parametrize(
    ("index", "later"),
    [(4, msgpack.ExtType(1, bytes(39))), (4, msgpack.ExtType(9, bytes(40)))],
    ids=["a digest of another size", "another kind"],
)
def test_what_a_later_kvreplay_writes_is_told_from_damage(
    record: ReplayRecord, index: int, later: object
) -> None:
    fields = fields_of(record)
    assert decode(sealed(fields), KEY) == record
    fields[index] = later
    data = sealed(fields)
    with pytest.raises(UnsupportedRecordVersionError, match="later kvreplay"):
        decode(data, KEY)
    assert answered(data) is None
    with pytest.raises(CorruptRecordError):
        decode(data[:-1] + bytes([data[-1] ^ 1]), KEY)


@pytest.mark.parametrize(
    ("index", "bad"),
    [
        (0, 0),
        (0, "1"),
        (0, True),
        (1, 0),
        (1, 5),
        (1, True),
        (1, 1),
        (2, None),
        (2, b"02ab"),
        (3, ""),
        (3, 7),
        (3, ["session-1"]),
        (3, [None, "session-1"]),
        (3, ["", "session-1"]),
        (3, ["refund", ""]),
        (3, ["refund", b"session-1"]),
        (3, ["refund", "session-1", "x"]),
        (3, [["refund"], "session-1"]),
        (3, {"refund": 1, "session-1": 2}),
        (4, "text"),
        (5, None),
        (5, "text"),
        (6, -1.0),
        (6, None),
        (7, None),
        (7, "soon"),
        (8, [bytes(16), 1, "owner", None]),
    ],
)
def test_an_intact_record_of_another_shape_is_no_answer(index: int, bad: object) -> None:
    fields = fields_of(COMPLETED)
    assert decode(sealed(fields)) == COMPLETED
    fields[index] = bad
    with pytest.raises(CorruptRecordError):
        decode(sealed(fields))


@pytest.mark.parametrize(
    "claim",
    [
        [bytes(15), 1, "owner", None],
        [bytes(17), 1, "owner", None],
        [bytes(16), 1, "owner"],  # of a kvreplay before the first version
        [bytes(16), 1, "owner", None, None],
        ["x" * 16, 1, "owner", None],
        [bytes(16), "1", "owner", None],
        [bytes(16), 1, None, None],
        [bytes(16), 1, "owner", 1.0],
        [bytes(16), 1, "owner", True],
        [bytes(16), 1, "owner", "soon"],
        {"token": bytes(16)},
        7,
    ],
)
def test_a_malformed_claim_is_no_claim(claim: object) -> None:
    fields = fields_of(IN_PROGRESS)
    assert decode(sealed(fields)) == IN_PROGRESS
    fields[8] = claim
    with pytest.raises(CorruptRecordError):
        decode(sealed(fields))


@pytest.mark.parametrize("fields", [[], {"a": 1, "crc": 0xFFFFFFFF}, [1, 0xFFFFFFFF], 0xFFFFFFFF])
def test_other_msgpack_with_a_right_checksum_is_no_record(fields: object) -> None:
    body = msgpack.packb(fields)
    data = (
        sealed(fields) if len(body) >= 5 else body + b"\xce" + zlib.crc32(body).to_bytes(4, "big")
    )
    with pytest.raises(CorruptRecordError):
        decode(data)


def test_a_record_has_ten_fields() -> None:
    fields = fields_of(COMPLETED)
    for wrong in ([*fields[:8], fields[9]], [*fields[:9], None, fields[9]]):
        with pytest.raises(CorruptRecordError):
            decode(sealed(wrong))


@pytest.mark.parametrize("code", ["d2i", "caf", "ceI"])
def test_the_short_way_takes_no_other_spelling_of_the_checksum(code: str) -> None:
    """The same number as an int32 or a float32, and every other number."""
    marker, form, spelled = bytes.fromhex(code[:2]), f">{code[2]}", 0
    for number in range(3000):  # some have a checksum that the other type can hold
        data = encode(attrs.evolve(COMPLETED, created_at=number))
        crc = zlib.crc32(data[:-5])
        assert answered(data) == COMPLETED.response
        try:
            other = struct.pack(form, crc if code != "ceI" else crc ^ 1 << number % 32)
        except struct.error:
            continue
        spelled += struct.unpack(form, other) == (crc,)
        bad = data[:-5] + marker + other
        assert answered(bad) is None
        with pytest.raises(CorruptRecordError):
            decode(bad)
    assert spelled or code == "ceI"


def answered(data: bytes, scope: str = KEY.scope, id_: str | list[str] = KEY.id) -> bytes | None:
    found = answer_in(data, scope, id_, COMPLETED.params, 1_700_000_000_000)
    return found and found[0]


def test_the_short_way_answers_nobody_else() -> None:
    data = encode(COMPLETED)
    assert answered(data) == COMPLETED.response
    for other in ("", "z"):
        assert answered(data, scope=other) is None
        assert answered(data, id_=other) is None


@pytest.mark.parametrize("tail", [[1, 2, 3], [1, "i", b"", b"", 0, "soon", None]])
def test_the_short_way_leaves_intact_nonsense_to_decode(tail: list[Any]) -> None:
    body = b"\x9a\x01\x02" + b"".join(map(msgpack.packb, tail))
    nonsense = body + b"\xce" + zlib.crc32(body).to_bytes(4, "big")
    assert answer_in(nonsense, KEY.scope, KEY.id, b"", 0) is None
    with pytest.raises(CorruptRecordError):
        decode(nonsense)


@pytest.mark.parametrize(("index", "bad"), [(6, None), (6, 0.5), (7, 1e15), (7, 2.0**70)])
def test_the_short_way_takes_no_record_of_another_shape(index: int, bad: object) -> None:
    fields = fields_of(COMPLETED)
    times = COMPLETED.created_at, COMPLETED.expires_at
    own = KEY.scope, KEY.id, COMPLETED.params
    assert answer_in(sealed(fields), *own, 0) == (COMPLETED.response, *times)
    fields[index] = bad
    with pytest.raises(CorruptRecordError):
        decode(sealed(fields), KEY)
    assert answer_in(sealed(fields), KEY.scope, KEY.id, COMPLETED.params, 0) is None


@given(st.binary(max_size=200))
def test_random_bytes_are_never_anything_but_a_record_error(data: bytes) -> None:
    for candidate in (data, data + b"\xce" + zlib.crc32(data).to_bytes(4, "big")):
        with pytest.raises(RecordError):
            decode(candidate)


@given(
    st.builds(
        ReplayRecord,
        state=st.just(State.COMPLETED),
        key=st.builds(
            ReplayKey,
            st.text(st.characters(exclude_categories=["Cs"])),
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
        ),
        params=st.binary(),
        response=st.binary(),
        created_at=st.integers(0, 2**63),
        expires_at=st.integers(0, 2**63),
        claim=st.none(),
    )
)
def test_what_is_encoded_is_decoded(record: ReplayRecord) -> None:
    assert decode(encode(record), record.key) == record


@pytest.mark.parametrize(
    "response",
    [None, 0, "", [], {}, False, 1.5, b"\x00", {"a": {1: [None, True]}}, float("inf"), 2**64 - 1],
)
def test_a_response_comes_back_equal_type_for_type(response: object) -> None:
    back = decode_response(encode_response(response, ""))
    assert back == response
    assert type(back) is type(response)


def test_a_tuple_comes_back_as_a_list() -> None:
    assert decode_response(encode_response((1, (2,)), "")) == [1, [2]]


@pytest.mark.parametrize(
    "response",
    [object(), {1, 2}, 2**64, "\ud800", {(1, 2): 3}, lambda: None],
    ids=["object", "set", "big", "surrogate", "tuple key", "function"],
)
def test_a_response_that_cannot_be_stored_says_so(response: object) -> None:
    says = rf"\({type(response).__name__}\) .* the consequence"
    with pytest.raises(InvalidResponseError, match=says):
        encode_response(response, "the consequence")


def test_a_response_nested_too_deep_cannot_be_stored() -> None:
    deep: list[Any] = []
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(InvalidResponseError):
        encode_response(deep, "")


def test_a_record_shows_no_payload() -> None:
    record = attrs.evolve(COMPLETED, params=b"secret", response=b"secret")
    assert "secret" not in repr(record)
    assert "session" not in repr(record)
    assert "secret" not in repr(Claim(b"secret" + bytes(10), 1, "o"))


def test_a_record_loads_what_it_holds() -> None:
    assert COMPLETED.load_params() == {"a": 1}
    assert COMPLETED.load_response() == "ok"
    assert IN_PROGRESS.load_response() is None
    assert TOMBSTONE.load_params() is None
