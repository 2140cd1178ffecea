"""The engines, each with the place where one test's entries are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from kvreplay.backends.filesystem import FilesystemStore
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.memory import MemoryStore
from kvreplay.backends.sqlite import SQLiteStore

__all__ = ["ENGINES", "Engine"]

ENGINES = ("memory", "filesystem", "lmdb", "sqlite")


@attrs.define
class Engine:
    """A kind of store, and where this test's entries of it are."""

    name: str
    path: Path
    opened: list[Any] = attrs.field(factory=list)

    @property
    def durable(self) -> bool:
        """Whether entries outlive the store object and its process."""
        return self.name != "memory"

    @property
    def transactional(self) -> bool:
        return self.name != "filesystem"

    def open(self, **options: Any) -> Any:
        """Open the store on this test's directory: the entries are those of every other call."""
        if self.name == "memory":
            store: Any = self.opened[0] if self.opened else MemoryStore(**options)
        elif self.name == "filesystem":
            store = FilesystemStore(self.path, **options)
        elif self.name == "sqlite":
            store = SQLiteStore(self.path, **options)
        else:
            store = LMDBStore(self.path, **options)
        self.opened.append(store)
        return store
