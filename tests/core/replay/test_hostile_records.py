"""Records with an intact checksum whose response, or params, no kvreplay has written."""

from __future__ import annotations

import threading
import traceback
import zlib
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvreplay import CorruptRecordError, InDoubtError, Outcome, ReplayKey
from kvreplay._protocol.params import canonical
from kvreplay._protocol.record import State, decode, decode_response, encode_fields
from kvreplay._runtime.singleflight import flights
from kvreplay.backends.memory import MemoryStore
from support.replaying import START, Async, Caller, FakeClock, Handler, OneByOne, Sync
from support.requesting import KEY, NAMESPACE, PARAMS
from support.waiting import until

SECRET = "secret-preimage"
PACKED_SECRET = msgpack.packb(SECRET)
NOT_MSGPACK = {
    "reserved byte": b"\xc1" + PACKED_SECRET,
    "trailing bytes": PACKED_SECRET + b"\x01",
    "two values": PACKED_SECRET + PACKED_SECRET,
    "nothing": b"",
    "cut short": PACKED_SECRET[:-1],
    "a list as a key": b"\x81\x91" + PACKED_SECRET + b"\x01",
    "a map as a key": b"\x81\x81\x01" + PACKED_SECRET + b"\x01",
    "nested 100,000 deep": b"\x91" * 100_000 + PACKED_SECRET,
    "text that is not UTF-8": b"\xb0" + SECRET.encode() + b"\xff",
    "timestamp of too many nanoseconds": b"\xc7\x0c\xff" + b"\xff" * 12,
    "timestamp of one byte": b"\xd4\xff\x00",
    "64-bit timestamp of too many nanoseconds": b"\xd7\xff" + b"\xff" * 8,
    "extension that is cut short": b"\xc7\xff\x05" + SECRET.encode(),
    "extension of 4 GiB": b"\xc9\xff\xff\xff\xff\x05" + SECRET.encode(),
    "bytes of 4 GiB": b"\xc6\xff\xff\xff\xff" + SECRET.encode(),
    "text of 4 GiB": b"\xdb\xff\xff\xff\xff" + SECRET.encode(),
    "array of 4 billion": b"\xdd\xff\xff\xff\xff" + PACKED_SECRET,
    "map of 4 billion": b"\xdf\xff\xff\xff\xff" + PACKED_SECRET * 2,
}
each_kind = pytest.mark.parametrize("packed", NOT_MSGPACK.values(), ids=NOT_MSGPACK)


def completed(response: bytes, params: bytes | None = None) -> bytes:
    own = canonical(PARAMS) if params is None else params
    until = START + 60_000
    return encode_fields(State.COMPLETED, ReplayKey(*KEY), own, response, START, until, None)


def assert_shows_nothing(error: BaseException) -> None:
    """Neither the error nor anything that it refers to holds a part of the record."""
    told = "".join(traceback.format_exception(error))
    assert SECRET not in told
    seen: BaseException | None = error
    while seen is not None:
        assert SECRET not in repr(seen)
        assert SECRET.encode() not in repr(vars(seen)).encode()
        assert isinstance(seen, CorruptRecordError), "a foreign exception is kept"
        seen = seen.__cause__ or seen.__context__


def test_a_response_that_is_not_msgpack_is_a_corrupt_record(
    replay: Any, store: Any, events: list[str]
) -> None:
    asks: list[Callable[[], object]] = [
        lambda: replay.execute(KEY, PARAMS, Handler("never")),
        lambda: replay.execute(ReplayKey(*KEY), PARAMS, Handler("never")),
        lambda: replay.lookup(KEY, PARAMS),
        lambda: replay.records()[0].load_response(),
    ]
    for packed in NOT_MSGPACK.values():
        data = completed(packed)
        store.write(NAMESPACE, *KEY, data)
        events.clear()
        for ask in asks:
            with pytest.raises(CorruptRecordError, match="left as it is") as error:
                ask()
            assert_shows_nothing(error.value)
        assert store.read(NAMESPACE, *KEY) == data
        assert events == ["corrupt_record"] * 3
    store.write(NAMESPACE, *KEY, completed(PACKED_SECRET))
    assert replay.execute(KEY, PARAMS, Handler("never")).response == SECRET
    assert replay.records()[0].load_response() == SECRET


def test_in_a_transaction_too(transactional: Any, face: Any) -> None:
    replay = face(transactional, NAMESPACE, ttl=60, clock=FakeClock())
    for packed in NOT_MSGPACK.values():
        transactional.write(NAMESPACE, *KEY, completed(packed))
        with pytest.raises(CorruptRecordError) as error:
            replay.execute_in_transaction(KEY, PARAMS, Handler("never"))
        assert_shows_nothing(error.value)


def test_params_that_are_not_msgpack_are_corrupt_too(replay: Any, store: Any) -> None:
    for packed in NOT_MSGPACK.values():
        store.write(NAMESPACE, *KEY, completed(PACKED_SECRET, packed))
        (record,) = replay.records()
        with pytest.raises(CorruptRecordError) as error:
            record.load_params()
        assert_shows_nothing(error.value)
        assert record.load_response() == SECRET


@each_kind
def test_a_record_that_is_not_msgpack_shows_nothing(packed: bytes) -> None:
    with pytest.raises(CorruptRecordError) as error:
        decode(packed + b"\xce" + zlib.crc32(packed).to_bytes(4, "big"))
    assert_shows_nothing(error.value)


class HoldsARead(OneByOne):
    """A store that holds one read back until it is let go: the one after so many quick looks."""

    reads_are_local = False

    def __init__(self, store: Any, quick: int) -> None:
        self._store = store
        self._left = quick
        self.asked, self.go = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, *address: str) -> bytes:
        self._left -= 1
        if self._left < 0 and not self.asked.is_set():
            self.asked.set()
            assert self.go.wait(30)
        data: bytes = self._store.read(*address)
        return data


def test_followers_are_told_the_same(face: Any, clock: FakeClock) -> None:
    store = HoldsARead(MemoryStore(), quick=0 if face is Async else 1)
    store.write(NAMESPACE, *KEY, completed(NOT_MSGPACK["trailing bytes"]))
    replay = face(store, NAMESPACE, ttl=60, clock=clock)
    leader = Caller(replay.execute, KEY, PARAMS, Handler("never"))
    assert store.asked.wait(30)
    (flight,) = flights.table.values()
    follower = Caller(replay.execute, KEY, PARAMS, Handler("never"))
    until(lambda: flight.wakers)
    store.go.set()
    for caller in (leader, follower):
        with pytest.raises(CorruptRecordError) as error:
            caller.result()
        assert_shows_nothing(error.value)


def test_without_a_claim_the_response_of_the_handler_is_not_lost(
    make: Callable[..., Any], store: Any
) -> None:
    def handler() -> str:
        store.write(NAMESPACE, *KEY, completed(NOT_MSGPACK["trailing bytes"]))
        return "mine"

    with pytest.raises(InDoubtError) as error:
        make(lease=None).execute(KEY, PARAMS, handler)
    assert error.value.response == "mine"
    assert isinstance(error.value.__cause__, CorruptRecordError)
    assert SECRET not in "".join(traceback.format_exception(error.value))


SOME_BYTES = st.one_of(
    st.binary(max_size=60),
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(),
        lambda each: (
            st.lists(each, max_size=3)
            | st.dictionaries(st.integers(-(2**63), 2**64 - 1), each, max_size=3)
        ),
        max_leaves=8,
    ).map(lambda value: bytes(msgpack.packb(value))),
    st.builds(
        lambda code, data: bytes(msgpack.packb(msgpack.ExtType(code, data))),
        st.integers(0, 127),
        st.binary(max_size=20),
    ),
    st.builds(
        lambda head, tail: head + tail,
        st.sampled_from([bytes([first]) for first in range(0x80, 0x100)]),
        st.binary(max_size=20),
    ),
)


def asks_of(replay: Any) -> list[Callable[[], object]]:
    return [
        lambda: replay.execute(KEY, PARAMS, Handler("never")),
        lambda: replay.lookup(KEY, PARAMS),
        lambda: replay.records()[0].load_response(),
        lambda: replay.records()[0].load_params(),
    ]


@given(response=SOME_BYTES, params=st.just(canonical(PARAMS)) | SOME_BYTES)
def test_any_bytes_are_an_answer_or_a_corrupt_record(response: bytes, params: bytes) -> None:
    store = MemoryStore()
    store.write(NAMESPACE, *KEY, completed(response, params))
    same = params == canonical(PARAMS)
    for face in (Sync, Async):
        replay: Any = face(store, NAMESPACE, ttl=60, clock=FakeClock())
        for ask in asks_of(replay):
            try:
                answer = ask()
            except CorruptRecordError as error:
                assert_shows_nothing(error)
            except Exception as error:
                assert not same
                assert type(error).__name__ == "ParamsMismatchError"
            else:
                if isinstance(answer, Outcome):
                    assert same
                    assert repr(answer.response) == repr(decode_response(response))
