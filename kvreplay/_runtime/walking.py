"""The namespace's records one by one, and expiry on a store that keeps no index of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from kvreplay._protocol.flow import prune
from kvreplay._protocol.keys import name
from kvreplay._protocol.record import ReplayRecord, decode
from kvreplay._runtime.blocking import drive
from kvreplay._runtime.run import Run
from kvreplay._runtime.settings import ReplayNamespace
from kvreplay.errors import (
    CorruptRecordError,
    InvalidParamsError,
    KeyNotFoundError,
    RecordError,
)
from kvreplay.store import ExpiringKVStore, ForkSafeLock, SweepResult

__all__ = ["Walk", "records", "sweep"]

Entry = tuple[bytes, ReplayRecord | RecordError]


def entries(namespace: ReplayNamespace) -> Iterator[Entry]:
    """Yield each entry of the namespace with its record, or with what is wrong with it."""
    for primary, secondary, key in namespace.store.list_all_keys():
        if primary != namespace.name:
            continue
        try:
            data = namespace.store.read(primary, secondary, key)
        except KeyNotFoundError:
            continue  # removed since it was listed
        try:
            record = decode(data)
            if (secondary, key) != (name(record.key.scope), name(record.key.id)):
                raise CorruptRecordError("a stored record belongs to another key")
        except RecordError as error:
            namespace.emit("corrupt_record", None)
            yield data, error
        else:
            yield data, record


def records(namespace: ReplayNamespace) -> Iterator[ReplayRecord]:
    """Yield all records that can be read, then complain about the others."""
    damaged: list[RecordError] = []
    for _, record in entries(namespace):
        if isinstance(record, RecordError):
            damaged.append(record)
        else:
            yield record
    if damaged:
        raise type(damaged[0])(
            f"{len(damaged)} of the namespace's records cannot be read; all others were given"
        ) from damaged[0]


def sweep(namespace: ReplayNamespace, walk: Walk, limit: int) -> SweepResult:
    """Remove at most ``limit`` entries that nobody needs: by the store's index, or by a walk."""
    if type(limit) is not int or limit < 1:
        raise InvalidParamsError("limit must be an int of at least 1; nothing was swept")
    if namespace.sweeps_itself:
        store = cast(ExpiringKVStore, namespace.store)
        return store.sweep(namespace.name, namespace.clock.now_ms(), limit)
    return walk.visit(limit)


class Walk:
    """Prunes the records that it passes; one call goes on where the last one stopped."""

    def __init__(self, namespace: ReplayNamespace) -> None:
        self._namespace = namespace
        self._entries: Iterator[Entry] | None = None
        self._lock = ForkSafeLock()  # one walker at a time: the iterator is shared

    def visit(self, limit: int) -> SweepResult:
        """Visit the next ``limit`` records; ``more``: the round is not over."""
        visited = removed = 0
        with self._lock:
            if self._entries is None:
                self._entries = entries(self._namespace)
            for data, record in self._entries:
                visited += 1
                if not isinstance(record, RecordError):
                    removed += self._prune(data, record)
                if visited == limit:
                    return SweepResult(visited, removed, more=True)
            self._entries = None
        return SweepResult(visited, removed, more=False)

    def _prune(self, data: bytes, record: ReplayRecord) -> bool:
        namespace = self._namespace
        now = namespace.clock.now_ms()
        return drive(prune(data, record, now, namespace.policy), Run(namespace, record.key))
