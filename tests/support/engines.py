"""The engines, each with the place where one test's entries are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from kvreplay import open_store
from kvreplay.backends.memory import MemoryStore

__all__ = ["ENGINES", "NAMES", "SHARED", "TRANSACTIONAL", "Engine", "these"]

_ON_SERVERS: Final = ("postgresql", "etcd")

NAMES: Final = ("memory", "filesystem", "lmdb", "sqlite", *_ON_SERVERS)
# Each Python has the same server, and the same driver.
ENGINES: Final = (
    *("memory", "filesystem", "lmdb", "sqlite"),
    *(pytest.param(name, marks=pytest.mark.any_python) for name in _ON_SERVERS),
)
"""All of them, as parameters of a test."""


def these(*names: str) -> list[Any]:
    """Return some of the engines, as parameters of a test."""
    return [each for each in ENGINES if _name_of(each) in names]


def _name_of(each: Any) -> str:
    return each if isinstance(each, str) else str(each.values[0])


SHARED: Final = these("filesystem", "lmdb", "sqlite", *_ON_SERVERS)
"""Those whose entries several processes share."""

TRANSACTIONAL: Final = these("memory", "lmdb", "sqlite", "postgresql")
"""Those whose stores have ``transaction()``."""


@attrs.define
class Engine:
    """A kind of store, and where this test's entries of it are.

    Attributes:
        path: where its files are, if it has any.
        server: the URL of its store, if it has no files.
    """

    name: str
    path: Path
    server: str | None = None
    opened: list[Any] = attrs.field(factory=list)

    @property
    def url(self) -> str:
        """What ``open_store`` takes."""
        if self.server is not None:
            return self.server
        return f"{self.name}:{self.path}" if self.durable else f"{self.name}:"

    @property
    def durable(self) -> bool:
        """Whether entries outlive the store object and its process."""
        return self.name != "memory"

    @property
    def has_files(self) -> bool:
        """Whether its entries are in files of this machine: processes look up who lives, and lock."""
        return self.durable and self.name not in _ON_SERVERS

    @property
    def transactional(self) -> bool:
        return self.name not in ("filesystem", "etcd")

    @property
    def hasty(self) -> dict[str, Any]:
        """The options of a store that waits for no flush, if there are such stores."""
        return {"durability": "process"} if self.name not in ("memory", "etcd") else {}

    @property
    def mistyped(self) -> str:
        """The URL of a store that is not there."""
        if self.name == "postgresql":
            return self.url.replace("schema=", "schema=not_")
        if self.name == "etcd":
            return self.url.replace("/t_", "/not_")
        return f"{self.name}:{self.path}-mistyped"

    def open(self, **options: Any) -> Any:
        """Open the store at this test's place: the entries are those of every other call."""
        if not self.durable:
            store: Any = self.opened[0] if self.opened else MemoryStore(**options)
        else:
            store = open_store({"url": self.url, **options})
        self.opened.append(store)
        return store
