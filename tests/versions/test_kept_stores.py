"""Today's code on the stores of released versions: it reads all of them, and writes the same bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kvreplay import (
    ClaimsInProgressError,
    ExpiredError,
    InDoubtError,
    InFlightError,
    ParamsMismatchError,
    State,
    StoredFailureError,
    migrate,
)
from kvreplay.backends.memory import MemoryStore
from kvreplay.testing import ManualClock
from support.engines import ENGINES, Engine
from support.final_failures import Declined
from support.migrations import content, order
from support.replaying import never
from versions import asked
from versions.asked import address_of, ask_all, replay_on, web_on
from versions.kept import VERSIONS, Version


@pytest.fixture
def clock(held: Version) -> ManualClock:
    """It stands at the moment when that version had made its last request."""
    return ManualClock(held.now)


def test_a_version_is_kept() -> None:
    assert "0.1.0" in VERSIONS


def test_each_entry_is_there_with_its_bytes_expiry_and_place(kept: Engine, held: Version) -> None:
    store = kept.open()
    assert content(store) == held.content
    assert order(store) == held.order


def test_each_answer_is_given_again(kept: Engine, held: Version, clock: ManualClock) -> None:
    store = kept.open()
    replay = replay_on(store, clock)
    for key, params, response in asked.ANSWERED.values():
        outcome = replay.execute(key, params, never)
        assert outcome.replayed
        assert outcome.response == response
        record = replay.record(key)
        assert record is not None
        assert (record.created_at, record.expires_at) == (outcome.created_at, outcome.expires_at)
    typed = replay.execute(asked.TYPED_KEY, asked.PARAMS, never, returns=asked.Invoice)
    assert typed.response == asked.TYPED
    private = replay_on(store, clock, namespace=asked.PRIVATE, params_key=asked.SECRET)
    assert private.execute(asked.DIGESTED, asked.PARAMS, never).response == "digested"
    for profile, key in asked.HTTP_KEYS.values():
        said = web_on(store, clock, profile, key, lambda environ, start_response: never())
        assert said == ("201 Created", b'{"id": 7}')
    assert content(store) == held.content


def test_other_params_are_stale(kept: Engine, held: Version, clock: ManualClock) -> None:
    store = kept.open()
    replay = replay_on(store, clock)
    private = replay_on(store, clock, namespace=asked.PRIVATE, params_key=asked.SECRET)
    for each, key in [
        *((replay, key) for key, *_ in (*asked.ANSWERED.values(), *asked.FAILED.values())),
        *((replay, key) for key, _ in asked.CLAIMED.values()),
        (private, asked.DIGESTED),
    ]:
        with pytest.raises(ParamsMismatchError):
            each.execute(key, "other params", never)
    assert content(store) == held.content


def test_each_failure_is_raised_again(kept: Engine, held: Version, clock: ManualClock) -> None:
    store = kept.open()
    replay = replay_on(store, clock)
    known, unknown = asked.FAILED.values()
    with pytest.raises(Declined) as caught:
        replay.execute(known[0], asked.PARAMS, never)
    assert caught.value.args == known[1].args
    with pytest.raises(StoredFailureError, match="could not be stored"):
        replay.execute(unknown[0], asked.PARAMS, never)
    assert content(store) == held.content


def test_each_doubt_is_found_and_can_be_settled(
    kept: Engine, held: Version, clock: ManualClock
) -> None:
    store = kept.open()
    replay = replay_on(store, clock)
    for key, in_doubt in asked.CLAIMED.values():
        with pytest.raises(InDoubtError if in_doubt else InFlightError):
            replay.execute(key, asked.PARAMS, never)
    found = {record.key for record in replay.records(in_doubt=True)}
    assert found == {key for key, in_doubt in asked.CLAIMED.values() if in_doubt}
    for record in replay.records(state=State.IN_PROGRESS):
        assert record.claim is not None
        assert (record.claim.token, record.claim.owner) == (asked.TOKEN, asked.OWNER)
    assert content(store) == held.content

    clock.advance("2h")  # now no lease counts any more
    ended, abandoned, running = (key for key, _ in asked.CLAIMED.values())
    assert replay.resolve(ended, response="paid", seen=replay.record(ended))
    assert replay.execute(ended, asked.PARAMS, never).response == "paid"
    assert replay.release(abandoned)
    assert replay.execute(abandoned, asked.PARAMS, lambda: "anew").response == "anew"
    with pytest.raises(InDoubtError):
        replay.execute(running, asked.PARAMS, never)


def test_expiry_is_honoured(kept: Engine, clock: ManualClock) -> None:
    replay = replay_on(kept.open(), clock)
    for key in (asked.EXPIRED, asked.TOMBSTONE):
        with pytest.raises(ExpiredError):
            replay.execute(key, asked.PARAMS, never)
    clock.advance("8d")  # past the tombstones
    for key in (asked.EXPIRED, asked.TOMBSTONE):
        assert replay.execute(key, asked.PARAMS, lambda: "anew").response == "anew"


def test_a_sweep_removes_what_is_due_and_nothing_else(
    kept: Engine, held: Version, clock: ManualClock
) -> None:
    store = kept.open()
    left = held.content
    assert replay_on(store, clock).sweep().removed == len(asked.DUE)
    for key in asked.DUE.values():
        del left[address_of(key)]
    assert content(store) == left

    clock.advance("60d")  # past all expiries: only claims are left, and what is not ours
    for namespace in (asked.NAMESPACE, asked.PRIVATE, asked.HTTP):
        replay_on(store, clock, namespace=namespace).sweep()
    claims = {address_of(key) for key, _ in asked.CLAIMED.values()}
    assert set(content(store)) == claims | set(asked.BESIDE)


@pytest.mark.parametrize("other", ENGINES)
def test_each_engine_takes_all_of_it(
    other: str, kept: Engine, held: Version, new_engine: Callable[[str], Engine]
) -> None:
    source, destination = kept.open(), new_engine(other).open()
    with pytest.raises(ClaimsInProgressError, match=f"{len(asked.CLAIMED)}|in progress"):
        migrate(source, destination)
    assert content(destination) == {}
    done = migrate(source, destination, with_claims=True)
    assert (done.entries, done.claims) == (len(held.kept), len(asked.CLAIMED))
    assert content(destination) == content(source) == held.content
    assert order(destination) == held.order


def test_it_goes_on_being_used(kept: Engine, held: Version, clock: ManualClock) -> None:
    """What today's code adds is there after it was closed, behind all that was there before."""
    replay_on(kept.open(), clock).execute(("02lsp", "new"), asked.PARAMS, lambda: "new")
    kept.opened[-1].close()
    store = kept.open()
    assert replay_on(store, clock).execute(("02lsp", "new"), asked.PARAMS, never).response == "new"
    new = address_of(asked.ReplayKey("02lsp", "new"))
    store.write(*new[:1], asked.LSP, "newest", b"")
    assert store.list_paginated(new[0], asked.LSP, limit=1).keys == ["newest"]
    assert content(store).items() >= held.content.items()


def test_today_s_code_writes_the_same_bytes(held: Version) -> None:
    """The requests that the version knew, made anew; what later ones add is beside them."""
    with MemoryStore() as store:
        made = ask_all(store, ManualClock())
        today = {what: store.read_entry(*address) for address, what in made.items()}
        addresses = {what: address for address, what in made.items()}
    for each in held.kept:
        if each.address not in asked.BESIDE:
            assert addresses[each.what] == each.address
            assert today[each.what] == each.entry, each.what
