"""A store in etcd as either side of a migration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvreplay import (
    ConfigError,
    InvalidValueError,
    Progress,
    StoreNotFoundError,
    migrate,
    open_store,
)
from support.migrations import MARK, content, fill, order

pytestmark = pytest.mark.any_python


class Stopped(Exception):
    """The migration ends here."""


def stopping(progress: Progress) -> None:
    if progress.step == "verify":
        raise Stopped


def test_all_comes_along_there_and_back(etcd: Any, tmp_path: Path) -> None:
    one, two = f"lmdb:{tmp_path}/one", f"sqlite:{tmp_path}/two"
    with open_store(one) as store:
        fill(store)
        expected, ordered = content(store), order(store)
    there = migrate(one, etcd.url)
    back = migrate(etcd.url, two)
    assert (there.entries, there.copied, there.ordered) == (back.entries, back.copied, True)
    for url in (etcd.url, two):
        with open_store(url) as store:
            assert content(store) == expected
            assert order(store) == ordered


def test_a_source_is_told_by_its_store_and_not_by_its_url(etcd: Any, tmp_path: Path) -> None:
    """One cluster has many prefixes, and one store many URLs."""
    url, other = f"{etcd.url}/one", f"{etcd.url}/other"
    for each in (url, other):
        with open_store(each) as store:
            fill(store)
    destination = f"sqlite:{tmp_path}/file"
    with pytest.raises(Stopped):
        migrate(url.replace("//", "//user:hunter2@", 1), destination, on_progress=stopping)
    with open_store(destination) as store:
        assert b"hunter2" not in store.read(*MARK)
    with pytest.raises(ConfigError, match="another source"):
        migrate(other, destination)
    assert migrate(f"{url}?timeout=9s", destination).copied == 0
    with pytest.raises(ConfigError, match="one store"):
        migrate(url, f"{url}/?timeout=9s")


def test_a_source_is_never_made(etcd: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError):
        migrate(etcd.url, f"lmdb:{tmp_path}/one")
    with pytest.raises(StoreNotFoundError):
        open_store(f"{etcd.url}?create=false")
    assert list(tmp_path.iterdir()) == []


def test_an_entry_that_is_too_large_for_a_request_stops_it_and_a_smaller_one_comes_along(
    etcd: Any, tmp_path: Path
) -> None:
    source = f"lmdb:{tmp_path}/one"
    with open_store(source) as store:
        store.write("p", "s", "k", bytes(2**20))
    assert migrate(source, f"{etcd.url}/one").copied == 1
    with open_store(source) as store:
        store.write("p", "s", "k", bytes(2**21))
    with pytest.raises(InvalidValueError, match="max_request_bytes"):
        migrate(source, f"{etcd.url}/other")
