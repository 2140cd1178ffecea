"""The store contract on etcd."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from kvreplay import open_store
from kvreplay.testing import Blocking, StoreContract
from support.etcd_stores import FAULTS, FOREIGN, open_at, prefixes_of


class TestEtcdStore(StoreContract):
    open = staticmethod(open_at)
    faults = FAULTS
    foreign = FOREIGN

    @pytest.fixture(autouse=True)
    def prefix(self, request: pytest.FixtureRequest, tmp_path: Path, etcd: Any) -> Iterator[None]:
        with prefixes_of(etcd, tmp_path, proxied="failing" in request.fixturenames):
            yield


class Awaited(Blocking):
    """The awaited face of a store; the store is closed with it."""

    def __init__(self, path: Path) -> None:
        self._store = open_at(path)
        super().__init__(lambda: self._store.awaited)

    def close(self) -> None:
        super().close()
        self._store.close()


@pytest.mark.any_python
class TestAwaitedEtcdStore(TestEtcdStore):
    open = Awaited
    # Both stores have the same operations: what these say is told above, at the price of many stores.
    test_histories_agree_with_a_dictionary = None


def test_stores_that_are_made_at_once_are_one(etcd: Any) -> None:
    together = Barrier(6)

    def make(_: int) -> object:
        together.wait()
        with open_store(etcd.url) as store:
            store.write("p", "s", "k", b"v")
            return store.identity  # type: ignore[attr-defined]  # this engine has one

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(make, range(6)))) == 1
