"""An old process beside a new one: a record that only a later version can read is left alone.

It is neither run again nor overwritten, whatever is asked of it. docs/format.md says what an upgrade may rely on.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import pytest

from kvreplay import (
    ClaimLostError,
    DestinationNotEmptyError,
    InDoubtError,
    InProcessAtomicStore,
    State,
    UnsupportedRecordVersionError,
    migrate,
)
from kvreplay._protocol.params import canonical
from kvreplay.backends.memory import MemoryStore
from kvreplay.testing import ManualClock
from support.migrations import content
from support.plain_stores import WalkableStore
from support.replaying import Async, AsyncOnTwin, Sync, never
from versions.asked import HTTP_KEYS, OWNER, TOKEN, address_of, web_on

KEY = ("02lsp", "session-1")
ADDRESS = ("request_invoice", *KEY)
PARAMS = {"amount_msat": 1000}
DUE = 10**15  # no clock of these tests comes there


def with_checksum(*fields: Any) -> bytes:
    body = msgpack.packb([*fields, 0xFFFFFFFF])[:-5]
    return bytes(body + b"\xce" + zlib.crc32(body).to_bytes(4, "big"))


def answered(version: int, params: Any = None) -> bytes:
    """The answer to these very params, which an old process would love to give."""
    own = canonical(PARAMS) if params is None else params
    return with_checksum(version, 2, *KEY, own, msgpack.packb("r"), 0, DUE, None)


def claimed(version: int) -> bytes:
    claim = [TOKEN, 0, OWNER, 0]  # it would be in doubt
    return with_checksum(version, 1, *KEY, canonical(PARAMS), None, 0, None, claim)


NEWER = {
    "an answer": answered(2),
    "a claim": claimed(2),
    "of another shape": with_checksum(2, {"later": "fields"}),
    "params of a later kind": answered(1, msgpack.ExtType(2, b"later")),
}

# What can be asked of a key.
ASKED: Mapping[str, Callable[[Any], object]] = {
    "execute": lambda replay: replay.execute(KEY, PARAMS, never),
    "execute, other params": lambda replay: replay.execute(KEY, "other", never),
    "execute_in_transaction": lambda replay: replay.execute_in_transaction(KEY, PARAMS, never),
    "lookup": lambda replay: replay.lookup(KEY, PARAMS),
    "record": lambda replay: replay.record(KEY),
    "records": lambda replay: replay.records(),
    "resolve": lambda replay: replay.resolve(KEY, response="r"),
    "release": lambda replay: replay.release(KEY),
    "forget": lambda replay: replay.forget(KEY),
}

each_face = pytest.mark.parametrize(
    "face", [Sync, Async, AsyncOnTwin], ids=["sync", "async", "awaited"]
)
each_newer = pytest.mark.parametrize("data", NEWER.values(), ids=NEWER)


def replay_on(face: Any, store: Any, **settings: Any) -> Any:
    own = {"ttl": 60, "clock": ManualClock(), "wait_timeout": 0, **settings}
    return face(store, ADDRESS[0], **own)


def holding(data: bytes, expires_at: int | None = None) -> MemoryStore:
    store = MemoryStore()
    store.check_and_put(*ADDRESS, expected=None, value=data, expires_at=expires_at)
    return store


@each_newer
@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
@each_face
def test_whatever_is_asked_nothing_runs_and_it_stays(
    face: Any, asked: Callable[[Any], object], data: bytes
) -> None:
    for settings in ({}, {"on_in_doubt": "rerun", "on_expired": "rerun"}):
        with holding(data) as store:
            with pytest.raises(UnsupportedRecordVersionError):
                asked(replay_on(face, store, **settings))
            assert store.read(*ADDRESS) == data


@each_newer
def test_with_no_claims_it_stays_too(data: bytes) -> None:
    with holding(data) as store:
        with pytest.raises(UnsupportedRecordVersionError):
            replay_on(Sync, store, lease=None).execute(KEY, PARAMS, never)
        assert store.read(*ADDRESS) == data


@each_face
def test_the_same_of_version_1_is_used(face: Any) -> None:
    with holding(answered(1)) as store:
        replay = replay_on(face, store)
        assert replay.execute(KEY, PARAMS, never).response == "r"
        assert replay.execute_in_transaction(KEY, PARAMS, never).response == "r"
        assert replay.lookup(KEY, PARAMS).response == "r"
        assert replay.record(KEY).state is State.COMPLETED
        assert [each.state for each in replay.records()] == [State.COMPLETED]
        assert replay.forget(KEY)
    for settle in (ASKED["resolve"], ASKED["release"]):
        with holding(claimed(1)) as store:
            replay = replay_on(face, store)
            with pytest.raises(InDoubtError):
                replay.execute(KEY, PARAMS, never)
            assert settle(replay)


@each_newer
@each_face
def test_a_sweep_goes_past_it(face: Any, data: bytes) -> None:
    """By the store's index, which the later version keeps; and by a walk, where there is none."""
    with holding(data, expires_at=DUE) as store:
        assert replay_on(face, store).sweep().removed == 0
        assert store.read(*ADDRESS) == data
    plain = WalkableStore()
    plain.write(*ADDRESS, data)
    clock = ManualClock()
    replay = replay_on(face, InProcessAtomicStore(plain), clock=clock)
    replay.execute(("02lsp", "due"), PARAMS, lambda: "r", ttl=1)
    clock.advance(2)
    swept = replay.sweep()
    assert (swept.removed, plain.entries) == (1, {ADDRESS: data})


@each_newer
@each_face
def test_a_run_that_finds_it_in_the_place_of_its_claim_leaves_it(face: Any, data: bytes) -> None:
    """A new process took the key over meanwhile: the lease was over, where its owner is not known."""
    for lease, error in (("30s", ClaimLostError), (None, InDoubtError)):
        with MemoryStore() as store:
            with pytest.raises(error):
                replay_on(face, store, lease=lease).execute(
                    KEY, PARAMS, lambda store=store: store.write(*ADDRESS, data)
                )
            assert store.read(*ADDRESS) == data


@each_newer
def test_a_migration_copies_it_and_never_replaces_it(data: bytes) -> None:
    with holding(data, DUE) as source, MemoryStore() as destination:
        migrate(source, destination)
        assert content(destination) == content(source)
    with holding(answered(1)) as source, holding(data) as used:
        with pytest.raises(DestinationNotEmptyError):
            migrate(source, used, into_used=True)
        assert used.read(*ADDRESS) == data


@pytest.mark.parametrize("profile", ["ietf", "acp"])
def test_over_http_it_is_a_503_and_nothing_runs(profile: str) -> None:
    (key,) = (key for each, key in HTTP_KEYS.values() if each == profile)

    def paid(environ: Any, start_response: Any) -> list[bytes]:
        start_response("201 Created", [])
        return [b""]

    clock, address = ManualClock(), address_of(key, "http")
    with MemoryStore() as store:
        store.write(*address, NEWER["of another shape"])
        status, _ = web_on(store, clock, profile, key, lambda environ, start_response: never())
        assert status.startswith("503")
        assert store.read(*address) == NEWER["of another shape"]
        store.remove(*address)
        assert web_on(store, clock, profile, key, paid)[0] == "201 Created"
