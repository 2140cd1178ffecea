"""With ``params_key`` a record keeps a keyed digest of its params, and never the params."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

import kvreplay
from kvreplay import (
    ConfigError,
    ExpiredError,
    IndeterminateError,
    InDoubtError,
    InFlightError,
    ParamsMismatchError,
    State,
)
from kvreplay._protocol.digests import ParamsDigest
from kvreplay._protocol.record import decode, encode
from kvreplay.backends.memory import MemoryStore
from support.final_failures import Declined
from support.replaying import Caller, FakeClock, Handler, never
from support.requesting import KEY, NAMESPACE, PARAMS, entry, reopened

NEW, OLD, STRANGE = b"n" * 16, b"o" * 32, b"s" * 16
SECRET = {"pan": "4000-MARKER-0002", "cvc": [123]}
OTHER = {"pan": "4000-MARKER-0003", "cvc": [123]}
MARKER = b"MARKER"


def raw(store: Any) -> bytes:
    """All that the store has for the namespace, with its names."""
    addresses = [each for each in store.list_all_keys() if each[0] == NAMESPACE]
    return repr(addresses).encode() + b"".join(store.read(*each) for each in addresses)


def test_the_stored_bytes_hold_no_params(
    make: Callable[..., Any], store: Any, clock: FakeClock
) -> None:
    digested = make(params_key=NEW, store_errors=(Declined,), tombstone_ttl=100)

    def look() -> str:
        assert MARKER not in raw(store)
        return "r"

    digested.execute(KEY, SECRET, look)  # as a claim
    with pytest.raises(Declined):
        digested.execute(("s", "failed"), SECRET, Handler(Declined()))
    with pytest.raises(IndeterminateError):
        digested.execute(("s", "doubt"), SECRET, Handler(IndeterminateError()))
    assert MARKER not in raw(store)
    assert {each.state for each in digested.records()} == {
        State.COMPLETED,
        State.FAILED,
        State.IN_PROGRESS,
    }
    for each in digested.records():
        assert each.load_params() is None
        assert "MARKER" not in repr(each)
    clock.pass_seconds(60)
    with pytest.raises(ExpiredError):
        digested.execute(KEY, SECRET, never)
    assert digested.record(KEY).state is State.TOMBSTONE
    assert MARKER not in raw(store)
    # Its twin: without a secret they are there.
    make().execute(("s", "plain"), SECRET, Handler("r"))
    assert MARKER in raw(store)


@pytest.mark.parametrize("lease", [30.0, None])
def test_the_same_params_replay_and_others_are_stale(
    engine: Any, make_on: Callable[..., Any], lease: float | None, events: list[str]
) -> None:
    store = engine.open()
    settings = {"params_key": NEW, "lease": lease}
    assert make_on(store, **settings).execute(KEY, SECRET, Handler("r")).response == "r"
    store = reopened(engine, store)
    digested = make_on(store, **settings)
    reordered = dict(reversed(SECRET.items()))
    assert digested.execute(KEY, reordered, never).replayed
    assert digested.lookup(KEY, SECRET).response == "r"
    for ask in (
        lambda: digested.execute(KEY, OTHER, never),
        lambda: digested.lookup(KEY, OTHER),
    ):
        with pytest.raises(ParamsMismatchError):
            ask()
    assert events[-4:] == ["replayed", "replayed", "params_mismatch", "params_mismatch"]


def test_a_claim_and_a_flight_compare_too(make: Callable[..., Any]) -> None:
    digested = make(params_key=NEW)
    handler = Handler("r", held=True)
    leader = Caller(digested.execute, KEY, SECRET, handler)
    assert handler.started.wait(30)
    with pytest.raises(ParamsMismatchError):
        digested.execute(KEY, OTHER, never)
    with pytest.raises(InFlightError):
        digested.execute(KEY, SECRET, never, wait_timeout=0)
    handler.let_go()
    assert leader.result().response == "r"
    with pytest.raises(IndeterminateError):
        digested.execute(("s", "2"), SECRET, Handler(IndeterminateError()))
    with pytest.raises(ParamsMismatchError):
        digested.execute(("s", "2"), OTHER, never)
    with pytest.raises(InDoubtError):
        digested.execute(("s", "2"), SECRET, never)


def test_a_new_secret_is_put_before_the_old_one(make: Callable[..., Any]) -> None:
    make(params_key=OLD).execute(KEY, SECRET, Handler("old"))
    rotated = make(params_key=(NEW, OLD))
    assert rotated.execute(KEY, SECRET, never).response == "old"
    with pytest.raises(ParamsMismatchError):
        rotated.execute(KEY, OTHER, never)
    rotated.execute(("s", "2"), SECRET, Handler("new"))
    only_new = make(params_key=[NEW])
    assert only_new.execute(("s", "2"), SECRET, never).response == "new"
    with pytest.raises(ConfigError, match=r"params_key=\(new, old\)"):
        only_new.execute(KEY, SECRET, never)


@pytest.mark.parametrize("params_key", [None, STRANGE, (STRANGE, OLD)])
@pytest.mark.parametrize("state", [State.COMPLETED, State.FAILED, State.IN_PROGRESS])
def test_an_unknown_secret_is_no_mismatch(
    make: Callable[..., Any], store: Any, params_key: Any, state: State
) -> None:
    ends = {
        State.COMPLETED: "r",
        State.FAILED: Declined(),
        State.IN_PROGRESS: IndeterminateError(),
    }
    owner = make(params_key=NEW, store_errors=(Declined,))
    if state is State.COMPLETED:
        owner.execute(KEY, SECRET, Handler("r"))
    else:
        with pytest.raises((Declined, IndeterminateError)):
            owner.execute(KEY, SECRET, Handler(ends[state]))
    before = entry(store)
    strange = make(params_key=params_key, on_in_doubt="rerun")
    for params in (SECRET, OTHER):
        for ask in (
            lambda params=params: strange.execute(KEY, params, never),
            lambda params=params: strange.lookup(KEY, params),
        ):
            with pytest.raises(ConfigError, match="nothing ran.*untouched"):
                ask()
    assert entry(store) == before


def test_a_record_with_plain_params_is_still_compared(make: Callable[..., Any]) -> None:
    make().execute(KEY, SECRET, Handler("plain"))
    digested = make(params_key=NEW)
    assert digested.execute(KEY, SECRET, never).response == "plain"
    with pytest.raises(ParamsMismatchError):
        digested.execute(KEY, OTHER, never)


def test_an_unknown_secret_does_not_matter_once_the_answer_has_expired(
    make: Callable[..., Any], clock: FakeClock
) -> None:
    make(params_key=NEW).execute(KEY, SECRET, Handler("r"))
    clock.pass_seconds(60)
    with pytest.raises(ExpiredError):
        make().execute(KEY, SECRET, never)
    assert make().execute(KEY, SECRET, Handler("anew")).response == "anew"


def test_the_same_params_have_another_digest_for_another_key(make: Callable[..., Any]) -> None:
    digested = make(params_key=NEW)
    keys = [("s", "1"), ("s", "2"), ("s1", "1")]
    for key in keys:
        digested.execute(key, SECRET, Handler("r"))
    digests = {digested.record(key).params.digest for key in keys}
    assert len(digests) == len(keys)
    ids = {digested.record(key).params.key_id for key in keys}
    assert len(ids) == 1


def test_a_digest_does_not_fit_another_keys_record(make: Callable[..., Any], store: Any) -> None:
    """Nobody can copy the params' digest of one key to another, and find them equal."""
    digested = make(params_key=NEW)
    for number in (1, 2):
        digested.execute(("s", str(number)), SECRET, Handler("r"))
    one, other = (digested.record(("s", str(number))) for number in (1, 2))
    store.write(NAMESPACE, "s", "2", encode(attrs.evolve(other, params=one.params)))
    with pytest.raises(ParamsMismatchError):
        digested.execute(("s", "2"), SECRET, never)


def test_a_migration_copies_digests(engine: Any, make_on: Callable[..., Any]) -> None:
    source, destination = engine.open(), MemoryStore()
    make_on(source, params_key=NEW).execute(KEY, SECRET, Handler("r"))
    kvreplay.migrate(source, destination)
    assert isinstance(decode(entry(destination) or b"").params, ParamsDigest)
    moved = make_on(destination, params_key=NEW)
    assert moved.execute(KEY, SECRET, never).response == "r"
    with pytest.raises(ParamsMismatchError):
        moved.execute(KEY, OTHER, never)


def test_a_transaction_keeps_a_digest_too(make_on: Callable[..., Any], transactional: Any) -> None:
    digested = make_on(transactional, params_key=NEW)
    digested.execute_in_transaction(KEY, SECRET, lambda transaction: "r")
    assert MARKER not in raw(transactional)
    assert digested.execute_in_transaction(KEY, SECRET, never).response == "r"
    with pytest.raises(ParamsMismatchError):
        digested.execute_in_transaction(KEY, OTHER, never)


def test_no_secret_is_shown(make: Callable[..., Any]) -> None:
    digested = make(params_key=b"marker" * 4)
    digested.execute(KEY, PARAMS, Handler("r"))
    texts = [repr(digested.replay), repr(digested.record(KEY).params)]
    for wrong in (b"marker", "marker" * 4):
        with pytest.raises(ConfigError) as told:
            make(params_key=wrong)
        texts.append(str(told.value))
    assert "marker" not in " ".join(texts)


@pytest.mark.parametrize("params_key", [b"short", (), [], "text", (NEW, b"short"), (NEW, None), 7])
def test_a_secret_is_some_random_bytes(make: Callable[..., Any], params_key: Any) -> None:
    with pytest.raises(ConfigError, match="params_key"):
        make(params_key=params_key)
