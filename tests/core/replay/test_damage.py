"""Damage: never an answer."""

from __future__ import annotations

import zlib
from typing import Any

import msgpack
import pytest

from kvreplay import (
    CorruptRecordError,
    InProcessAtomicStore,
    StoreError,
    UnsupportedRecordVersionError,
)
from support.plain_stores import WalkableStore
from support.replaying import Async, Handler, Sync
from support.requesting import KEY, NAMESPACE, PARAMS


def test_a_damaged_record_is_never_an_answer(replay: Any, store: Any, events: list[str]) -> None:
    replay.execute(KEY, PARAMS, Handler("r"))
    replay.execute(("s", "intact"), PARAMS, Handler("r"))
    address = (NAMESPACE, *KEY)
    good = store.read(*address)
    other = store.read(NAMESPACE, "s", "intact")
    handler = Handler("never")
    for bad in (good[:-1], good[:20] + b"\xff" + good[21:], b"", other):
        store.write(*address, bad)
        with pytest.raises(CorruptRecordError):
            replay.execute(KEY, PARAMS, handler)
        with pytest.raises(CorruptRecordError):
            replay.lookup(KEY, PARAMS)
        assert store.read(*address) == bad
    assert handler.runs == 0
    assert "corrupt_record" in events
    store.write(*address, good)
    assert replay.execute(KEY, PARAMS, handler).response == "r"


_NEWER_BODY = msgpack.packb([9, "later", 0xFFFFFFFF])[:-5]
NEWER = _NEWER_BODY + b"\xce" + zlib.crc32(_NEWER_BODY).to_bytes(4, "big")


def test_a_newer_record_is_left_alone(replay: Any, store: Any) -> None:
    store.write(NAMESPACE, *KEY, NEWER)
    with pytest.raises(UnsupportedRecordVersionError):
        replay.execute(KEY, PARAMS, Handler("never"))
    assert store.read(NAMESPACE, *KEY) == NEWER


def test_records_gives_all_good_ones_and_then_names_the_damage(
    replay: Any, store: Any, events: list[str]
) -> None:
    for number in range(3):
        replay.execute(("s", str(number)), PARAMS, Handler(number))
    store.write(NAMESPACE, "s", "0", b"damaged")
    for elsewhere in ("-", "z"):  # before its own key, and behind it
        store.write(NAMESPACE, "s", elsewhere, store.read(NAMESPACE, "s", "1"))
    events.clear()
    seen = []
    with pytest.raises(CorruptRecordError, match="3 of"):
        for record in replay.replay.records() if isinstance(replay, Sync) else ():
            seen.append(record.key.id)
        if isinstance(replay, Async):
            replay.records()
    assert sorted(seen) == (["1", "2"] if isinstance(replay, Sync) else [])
    assert events == ["corrupt_record"] * 3


def test_a_closed_store_is_refused(replay: Any, engine: Any, store: Any) -> None:
    store.close()
    handler = Handler("never")
    with pytest.raises(StoreError):
        replay.execute(KEY, PARAMS, handler)
    assert handler.runs == 0


def test_records_complains_of_the_first_damage_in_its_own_class(face: Any) -> None:
    inner = WalkableStore()
    for error, first, second in [
        (CorruptRecordError, b"damaged", NEWER),
        (UnsupportedRecordVersionError, NEWER, b"damaged"),
    ]:
        inner.entries = {(NAMESPACE, "s", "1"): first, (NAMESPACE, "s", "2"): second}
        with pytest.raises(error, match="2 of") as complaint:
            list(face(InProcessAtomicStore(inner), NAMESPACE, ttl=60).records())
        assert type(complaint.value.__cause__) is error
