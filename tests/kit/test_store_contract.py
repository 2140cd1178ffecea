"""Every engine runs the store contract that ships; so does the wrapper around a plain store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.memory import MemoryStore
from kvreplay.store.in_process import InProcessAtomicStore
from kvreplay.testing import StoreContract


class TestMemory(StoreContract):
    durable = False

    def open(self, path: Path) -> MemoryStore:
        return MemoryStore()


class TestFilesystem(StoreContract):
    open = FilesystemStore


class TestLMDB(StoreContract):
    open = LMDBStore


class PlainStore:
    """A node's own: LDK's four calls and the walk over a dictionary, and nothing of kvreplay's."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str, str], bytes] = {}

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        return self.entries[primary_namespace, secondary_namespace, key]

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        self.entries[primary_namespace, secondary_namespace, key] = value

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        self.entries.pop((primary_namespace, secondary_namespace, key), None)

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        namespace = (primary_namespace, secondary_namespace)
        return [address[2] for address in list(self.entries) if address[:2] == namespace]

    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        yield from list(self.entries)


class TestWrappedPlainStore(StoreContract):
    durable = False

    def open(self, path: Path) -> InProcessAtomicStore:
        return InProcessAtomicStore(PlainStore())


class TestWrappedDurableStore(StoreContract):
    multi_process = False

    def open(self, path: Path) -> InProcessAtomicStore:
        return InProcessAtomicStore(FilesystemStore(path))
