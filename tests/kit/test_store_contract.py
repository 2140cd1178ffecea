"""Every engine runs the store contract that ships; so does the wrapper around a plain store."""

from __future__ import annotations

from pathlib import Path

from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.memory import MemoryStore
from kvreplay.backends.sqlite import SQLiteStore
from kvreplay.store.in_process import InProcessAtomicStore
from kvreplay.testing import Blocking, StoreContract
from support.awaited_stores import AwaitedStore
from support.media import FAULTS, FOREIGN, some
from support.plain_stores import WalkableStore


class TestMemory(StoreContract):
    durable = False

    def open(self, path: Path) -> MemoryStore:
        return MemoryStore()


class TestFilesystem(StoreContract):
    open = FilesystemStore
    faults = FAULTS["filesystem"]
    foreign = FOREIGN["filesystem"]


class TestLMDB(StoreContract):
    open = LMDBStore
    faults = FAULTS["lmdb"]
    foreign = FOREIGN["lmdb"]


class TestSQLite(StoreContract):
    open = SQLiteStore
    faults = FAULTS["sqlite"]
    foreign = FOREIGN["sqlite"]


class TestWrappedPlainStore(StoreContract):
    durable = False

    def open(self, path: Path) -> InProcessAtomicStore:
        return InProcessAtomicStore(WalkableStore())


class TestWrappedDurableStore(StoreContract):
    multi_process = False
    faults = some(FAULTS["filesystem"], "a namespace is denied")
    foreign = some(FOREIGN["filesystem"], "files")

    def open(self, path: Path) -> InProcessAtomicStore:
        return InProcessAtomicStore(FilesystemStore(path))


class TestAwaitedStore(StoreContract):
    """An asynchronous store of the tests' own."""

    durable = False

    def open(self, path: Path) -> Blocking:
        return Blocking(AwaitedStore)
