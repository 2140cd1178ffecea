"""Migrations between any two engines: exact, resumable, verified; what they refuse, with its twin."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import kvreplay
from kvreplay import (
    ClaimsInProgressError,
    ConfigError,
    CorruptStoreError,
    DestinationNotEmptyError,
    NotEqualError,
    Progress,
    Replay,
    StoreNotFoundError,
    migrate,
    open_store,
)
from kvreplay.backends.memory import MemoryStore
from support.engines import ENGINES, NAMES, Engine
from support.media import FOREIGN
from support.migrations import (
    LDK,
    MARK,
    content,
    fill,
    ldk_files,
    node_file,
    order,
    url_of,
)


def knows_order(*stores: Any) -> bool:
    return all(hasattr(store, "list_paginated") for store in stores)


@pytest.mark.parametrize("other", ENGINES)
@pytest.mark.parametrize("one", ENGINES)
def test_any_engine_to_any_engine(one: str, other: str, new_engine: Callable[..., Engine]) -> None:
    source, destination = new_engine(one).open(), new_engine(other).open()
    fill(source)
    before = content(source)
    done = migrate(source, destination)
    assert content(source) == before
    assert content(destination) == before
    assert (done.entries, done.copied, done.removed) == (len(before), len(before), 0)
    assert done.ordered == knows_order(source, destination)
    if done.ordered:
        assert order(destination) == order(source)
    with pytest.raises(DestinationNotEmptyError, match="not empty"):
        migrate(source, destination)


@pytest.mark.server
def test_a_round_trip_over_all_engines_is_byte_for_byte(
    new_engine: Callable[..., Engine],
) -> None:
    stores = [new_engine(name).open() for name in (*NAMES, "memory")]
    fill(stores[0], 200)
    for one, other in itertools.pairwise(stores):
        migrate(one, other)
    assert content(stores[-1]) == content(stores[0])


@pytest.mark.parametrize("engine", FOREIGN)
def test_what_is_no_entry_is_not_copied(engine: str, tmp_path: Path) -> None:
    with open_store(f"{engine}:{tmp_path}/one") as store:
        fill(store)
        wanted, in_order = content(store), order(store)
    for plant in FOREIGN[engine].values():
        plant(tmp_path / "one")
    with MemoryStore() as destination:
        migrate(f"{engine}:{tmp_path}/one", destination)
        assert content(destination) == wanted
        assert order(destination) == in_order


def test_urls_and_a_source_is_never_made(tmp_path: Path) -> None:
    with open_store(f"lmdb:{tmp_path}/one") as store:
        fill(store)
        wanted = content(store)
    data = (tmp_path / "one" / "data.mdb").read_bytes()
    migrate(f"lmdb:{tmp_path}/one", f"sqlite:{tmp_path}/two")
    assert (tmp_path / "one" / "data.mdb").read_bytes() == data
    with open_store(f"sqlite:{tmp_path}/two") as store:
        assert content(store) == wanted
    with pytest.raises(StoreNotFoundError):
        migrate(f"lmdb:{tmp_path}/none", f"sqlite:{tmp_path}/three")
    assert sorted(path.name for path in tmp_path.iterdir() if "two" not in path.name) == ["one"]


class Stopped(Exception):
    """The migration was stopped."""


@pytest.mark.parametrize("other", ENGINES)
def test_stopped_after_each_batch_it_is_resumed(
    other: str, new_engine: Callable[..., Engine]
) -> None:
    source = MemoryStore()
    fill(source)
    for stop in range(1, 12):
        destination = new_engine(other).open()
        calls = itertools.count()

        def stopping(_: Progress, calls: Iterator[int] = calls, stop: int = stop) -> None:
            if next(calls) == stop:
                raise Stopped

        with pytest.raises(Stopped):
            migrate(source, destination, batch=3, on_progress=stopping)
        done = migrate(source, destination)
        assert content(destination) == content(source)
        assert done.removed == 0
        if done.ordered:
            assert order(destination) == order(source)


def test_a_resumed_one_follows_what_the_source_has_changed(
    new_engine: Callable[..., Engine],
) -> None:
    source, destination = MemoryStore(), new_engine("sqlite").open()
    fill(source)
    source.write("whole", "namespace", "k", b"v")

    def changing(progress: Progress) -> None:
        if progress.step == "verify" and not progress.done:
            source.write("p", "", "k007", b"another value")
            source.remove("p", "s", "k014")
            source.write("p", "s", "k014", b"made anew: the youngest")
            source.remove("q", "s", "k021")
            source.write("new", "", "k", b"v")
            source.remove("whole", "namespace", "k")

    with pytest.raises(NotEqualError) as caught:
        migrate(source, destination, on_progress=changing)
    assert caught.value.differences > 0
    assert destination.read(*MARK)
    migrate(source, destination)
    assert content(destination) == content(source)
    assert order(destination) == order(source)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("damage", ["value", "expiry", "missing", "extra", "order"])
def test_a_destination_that_was_changed_between_the_passes_is_found(
    damage: str, engine: str, new_engine: Callable[..., Engine]
) -> None:
    source, destination = MemoryStore(), new_engine(engine).open()
    if damage == "order" and not knows_order(destination):
        return
    fill(source)

    def damaging(progress: Progress) -> None:
        if progress.step == "verify" and not progress.done:
            entry = destination.read_entry("p", "s", "k014")
            if damage == "value":
                destination.write("p", "s", "k014", b"")
            elif damage == "expiry":
                destination.check_and_put(
                    *("p", "s", "k014"), expected=entry.value, value=entry.value, expires_at=1
                )
            elif damage == "extra":
                destination.write("p", "s", "foreign", b"")
            else:
                destination.remove("p", "s", "k014")
                if damage == "order":
                    destination.write("p", "s", "k014", entry.value)

    with pytest.raises(NotEqualError, match="1 differences|2 differences"):
        migrate(source, destination, on_progress=damaging)
    migrate(source, destination)
    assert content(destination) == content(source)


@pytest.mark.parametrize("engine", ["filesystem", "lmdb", "sqlite"])
def test_a_destination_whose_files_were_damaged_between_the_passes_is_found(
    engine: str, tmp_path: Path
) -> None:
    source, value, place = MemoryStore(), b"what no other entry has" * 20, tmp_path / "store"
    fill(source)
    source.write("p", "s", "whole", value)
    damaged = []

    def damage(progress: Progress) -> None:
        if progress.step == "verify" and not progress.done:
            for path in [*tmp_path.iterdir(), *place.glob("**/*")]:
                if path.is_file() and (at := path.read_bytes().find(value)) >= 0:
                    with path.open("r+b") as file:
                        file.seek(at + 5)
                        file.write(b"X")
                    damaged.append(path)

    destination = url_of(engine, place)
    with pytest.raises(NotEqualError, match="1 differences"):
        migrate(source, destination, on_progress=damage)
    assert damaged
    assert migrate(source, destination).copied == 1
    with open_store(destination) as store:
        assert content(store) == content(source)


class Unordered:
    """A source that can be walked and read, and nothing else."""

    def __init__(self, store: MemoryStore) -> None:
        self.read = store.read
        self.list_all_keys = store.list_all_keys
        self.identity = "a source"


def test_what_is_too_much_is_found_without_an_order() -> None:
    store, destination = MemoryStore(), MemoryStore()
    fill(store)

    def adding(progress: Progress) -> None:
        if progress.step == "verify" and not progress.done:
            destination.write("p", "s", "foreign", b"")

    with pytest.raises(NotEqualError, match="1 differences"):
        migrate(Unordered(store), destination, on_progress=adding)  # type: ignore[arg-type]
    done = migrate(Unordered(store), destination)  # type: ignore[arg-type]
    assert (done.removed, done.ordered) == (1, False)
    assert set(destination.list_all_keys()) == set(store.list_all_keys())


def test_a_used_destination_loses_nothing(new_engine: Callable[..., Engine]) -> None:
    source, destination = MemoryStore(), new_engine("lmdb").open()
    fill(source)
    destination.write("mine", "", "k", b"mine")
    with pytest.raises(DestinationNotEmptyError):
        migrate(source, destination)
    migrate(source, destination, into_used=True)
    assert content(destination) == {
        **content(source),
        ("mine", "", "k"): kvreplay.Entry(b"mine", None),
    }
    source.write("mine", "", "k", b"another")
    with pytest.raises(DestinationNotEmptyError, match="another entry"):
        migrate(source, destination, into_used=True)
    assert destination.read("mine", "", "k") == b"mine"


def test_another_source_does_not_complete_it() -> None:
    source, destination = MemoryStore(), MemoryStore()
    fill(source)

    def stopping(progress: Progress) -> None:
        if progress.step == "verify":
            raise Stopped

    with pytest.raises(Stopped):
        migrate(source, destination, on_progress=stopping)
    with pytest.raises(ConfigError, match="another source"):
        migrate(MemoryStore(), destination)
    with pytest.raises(ConfigError, match="has not ended"):
        migrate(destination, MemoryStore())
    migrate(source, destination)
    with pytest.raises(ConfigError, match="one store"):
        migrate(source, source)


def test_claims_are_named_and_refused_unless_told(new_engine: Callable[..., Engine]) -> None:
    source, destination = new_engine("lmdb").open(), new_engine("sqlite").open()
    replay = Replay(source, "requests", ttl=60)
    key = kvreplay.ReplayKey("peer", "secret-session")

    def handler() -> str:
        with pytest.raises(ClaimsInProgressError, match="nothing was copied") as caught:
            migrate(source, destination)
        (named,) = caught.value.claims
        assert named == (key.digest(), "its process runs it")
        assert "secret" not in str(caught.value)
        assert list(destination.list_all_keys()) == []
        done = migrate(source, destination, with_claims=True)
        assert done.claims == 1
        return "answer"

    assert replay.execute(key, {}, handler).response == "answer"
    with pytest.raises(kvreplay.InDoubtError):  # this very process knows that it does not run
        Replay(destination, "requests", ttl=60).lookup(key, {})
    other = MemoryStore()
    assert migrate(source, other).claims == 0  # it has ended at the source
    found = Replay(other, "requests", ttl=60).lookup(key, {})
    assert found is not None
    assert found.response == "answer"


def test_a_claim_that_begins_during_the_copy_is_refused_too() -> None:
    source, destination = MemoryStore(), MemoryStore()
    fill(source)
    replay = Replay(source, "requests", ttl=60)

    def handler() -> str:
        claim = next(each for each in content(source).items() if each[0][0] == "requests")
        source.remove(*claim[0])

        def claiming(progress: Progress) -> None:
            if progress.step == "copy" and not progress.done:
                source.write(*claim[0], claim[1].value)

        with pytest.raises(ClaimsInProgressError, match="a part was copied"):
            migrate(source, destination, on_progress=claiming)
        assert destination.read(*MARK)
        return "answer"

    replay.execute(("peer", "session"), {}, handler)
    migrate(source, destination)
    assert content(destination) == content(source)


def test_a_destination_whose_map_is_too_small_grows(tmp_path: Path) -> None:
    source = MemoryStore()
    for number in range(100):
        source.write("p", "s", f"k{number}", bytes([number]) * 5000)
    with open_store(f"lmdb:{tmp_path}/small?map_size=65536") as destination:
        assert migrate(source, destination).copied == 100
        assert content(destination) == content(source)


# LDK's own files.


@pytest.mark.parametrize("layout", ["ldk-v1", "ldk-v2"])
def test_a_folder_of_ldk_is_read_and_not_changed(layout: str, tmp_path: Path) -> None:
    root = tmp_path / "ldk"
    ldk_files(root, layout)
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    with open_store(f"sqlite:{tmp_path / 'out' / 'file'}") as destination:
        done = migrate(f"filesystem:{root}?layout={layout}", destination)
        assert {each: entry.value for each, entry in content(destination).items()} == LDK
        assert done.ordered
    after = sorted(
        (path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if "out" not in path.parts
    )
    assert after == before
    other = "ldk-v1" if layout == "ldk-v2" else "ldk-v2"
    with pytest.raises(CorruptStoreError, match=f"layout={layout}"):
        migrate(f"filesystem:{root}?layout={other}", MemoryStore())


def test_a_folder_of_ours_is_not_read_as_ldks(tmp_path: Path) -> None:
    with open_store(f"filesystem:{tmp_path}/ours") as store:
        fill(store)
        wanted = content(store)
    with pytest.raises(CorruptStoreError, match="leave out the option layout"):
        migrate(f"filesystem:{tmp_path}/ours?layout=ldk-v2", MemoryStore())
    destination = MemoryStore()
    migrate(f"filesystem:{tmp_path}/ours", destination)
    assert content(destination) == wanted
    with pytest.raises(ConfigError, match="only a source"):
        migrate(MemoryStore(), f"filesystem:{tmp_path}/x?layout=ldk-v1")


def test_a_file_of_ldk_node_is_read_and_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "ldk_node_data.sqlite"
    node_file(path, 3)
    before = path.read_bytes()
    destination = MemoryStore()
    assert migrate(f"sqlite:{path}", destination).ordered
    assert {each: entry.value for each, entry in content(destination).items()} == LDK
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    node_file(tmp_path / "old", 2)
    with pytest.raises(CorruptStoreError, match="version 2"):
        migrate(f"sqlite:{tmp_path}/old", MemoryStore())
