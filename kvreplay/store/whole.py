"""What can be done with a whole store, a protocol for each capability: walk, check, copy, compact.

They are for operators and their commands. What every store promises is in ``contract.py``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import attrs

from kvreplay.store.contract import Entry, InspectableKVStore, MigratableKVStore

__all__ = [
    "BackupKVStore",
    "CheckableKVStore",
    "CompactableKVStore",
    "Compacted",
    "Fault",
    "ScannableKVStore",
]


@runtime_checkable
class ScannableKVStore(InspectableKVStore, Protocol):
    """A store whose whole content can be walked with its values, in memory of one size."""

    def scan(
        self, primary_namespace: str | None = None
    ) -> Iterator[tuple[tuple[str, str, str], Entry]]:
        """Yield every entry, with its address, as some change has put it; in no promised order.

        Each entry that exists during the whole walk is yielded exactly once. The walk blocks no
        writer, and it holds neither a transaction nor a lock while the caller works. It keeps a
        page in memory, bounded in entries and in bytes, or one entry if that is larger.

        Args:
            primary_namespace: yield only what is in this one; ``None``: everything.

        Raises:
            CorruptStoreError: there are entries that cannot be told. It is raised at the end, once
                all others were yielded.
        """


@attrs.frozen
class Fault:
    """Something that is wrong with a store's own structures; a copy by entries is without it.

    Attributes:
        address: of the entry that it is about; ``None``: it is about none.
        what: what is wrong, and what follows from it. It shows no key and no value.
    """

    address: tuple[str, str, str] | None = attrs.field(repr=False)
    what: str


@runtime_checkable
class CheckableKVStore(MigratableKVStore, Protocol):
    """A store that can look whether its own structures are sound: its indexes, its files."""

    def check(self) -> Iterator[Fault]:
        """Yield what is wrong; nothing, if all is right.

        It changes nothing and blocks no writer. What others change meanwhile is never told as a
        fault. What a crash may leave, and the engine sees to by itself, is none.

        Raises:
            StoreError: the store cannot be looked at any further.
        """


@runtime_checkable
class BackupKVStore(MigratableKVStore, Protocol):
    """A store that can be copied as a whole while others use it."""

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the whole store to a new path: as it was at one moment during the call.

        An engine without snapshots says so: there each entry is as it was at some moment.

        Other threads and processes may write meanwhile. Once it returns the copy is durable, and
        a store of the same engine opens there. It is another store: it has an identity of its own.
        A backup that fails or is killed leaves nothing at ``path``, but perhaps a sibling of it
        that ends in ``.tmp``, which nobody needs.

        Args:
            path: where nothing is yet; folders above it are made.

        Raises:
            ConfigError: something is there.
            StoreFullError: there is no room for the copy.
            StoreUnavailableError: the store was changed too often while it was copied.
        """


@attrs.frozen
class Compacted:
    """The size of a store's files, in bytes, before and after it was compacted."""

    before: int
    after: int


@runtime_checkable
class CompactableKVStore(MigratableKVStore, Protocol):
    """A store whose file keeps the room of what was removed, until it is compacted."""

    def compact(self) -> Compacted:
        """Give the room of what was removed back to the file system.

        It needs room for a second copy while it works. A crash leaves the store as it was before,
        or as it is afterwards; no entry changes.

        Raises:
            StoreUnavailableError: others use the store; nothing was changed.
            StoreFullError: there is no room for the second copy; nothing was changed.
        """
