"""The records of a namespace, one by one."""

from __future__ import annotations

from collections.abc import Iterator

from kvreplay._protocol.keys import name
from kvreplay._protocol.record import ReplayRecord, decode
from kvreplay._runtime.settings import Settings
from kvreplay.errors import CorruptRecordError, KeyNotFoundError, RecordError

__all__ = ["Found", "records", "walk"]

Found = tuple[bytes, ReplayRecord | RecordError]
"""A stored record's bytes, and the record or the error that says what is wrong with it."""


def walk(settings: Settings) -> Iterator[Found]:
    """Yield each entry of the namespace, sound or not."""
    for primary, secondary, key in settings.store.list_all_keys():
        if primary != settings.name:
            continue
        try:
            data = settings.store.read(primary, secondary, key)
        except KeyNotFoundError:
            continue  # removed since it was listed
        try:
            record = decode(data)
            own = record.key
            if (secondary, key) != (name(own.scope), name(own.id, own.operation)):
                raise CorruptRecordError("a stored record belongs to another key")
        except RecordError as error:
            settings.observer.emit("corrupt_record", None)
            yield data, error
        else:
            yield data, record


def records(settings: Settings) -> Iterator[ReplayRecord]:
    """Yield all records that can be read, then raise an error if there are others."""
    damaged: list[RecordError] = []
    for _, record in walk(settings):
        if isinstance(record, RecordError):
            damaged.append(record)
        else:
            yield record
    if damaged:
        raise type(damaged[0])(
            f"{len(damaged)} of the namespace's records cannot be read; all others were yielded"
        ) from damaged[0]
