"""The records of a namespace, one by one."""

from __future__ import annotations

from collections.abc import Iterator

from kvreplay._protocol.flow import is_in_doubt
from kvreplay._protocol.keys import ReplayKey, name, scope_name
from kvreplay._protocol.record import ReplayRecord, State, decode
from kvreplay._runtime.blocking import drive
from kvreplay._runtime.run import Run
from kvreplay._runtime.settings import Settings
from kvreplay.errors import (
    CorruptRecordError,
    InvalidParamsError,
    KeyNotFoundError,
    RecordError,
)

__all__ = ["Found", "in_doubt", "record", "records", "walk"]

Found = tuple[bytes, ReplayRecord | RecordError]
"""A stored record's bytes, and the record or the error that says what is wrong with it."""


def walk(settings: Settings) -> Iterator[Found]:
    """Yield each entry of the namespace, sound or not."""
    began = settings.observer.began()
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
            error.addresses = ((primary, secondary, key),)
            settings.observer.emit("corrupt_record", None, began)
            yield data, error
        else:
            yield data, record


def record(settings: Settings, key: ReplayKey) -> ReplayRecord | None:
    """Return one key's record, or ``None``."""
    address = settings.name, scope_name(key.scope), name(key.id, key.operation)
    try:
        return decode(settings.store.read(*address), key)
    except KeyNotFoundError:
        return None
    except RecordError as error:
        error.addresses = (address,)
        raise


def records(
    settings: Settings, state: State | None, in_doubt: bool | None
) -> Iterator[ReplayRecord]:
    """Yield all records that are asked for and can be read, then raise an error for the others."""
    if state is not None and not isinstance(state, State):
        raise InvalidParamsError(f"state= is a {type(state).__name__}; give a State")
    if in_doubt is not None and not isinstance(in_doubt, bool):
        raise InvalidParamsError(f"in_doubt= is a {type(in_doubt).__name__}; give True or False")
    return _chosen(settings, state, in_doubt)


def _chosen(
    settings: Settings, state: State | None, in_doubt: bool | None
) -> Iterator[ReplayRecord]:
    damaged: list[RecordError] = []
    for _, found in walk(settings):
        if isinstance(found, RecordError):
            damaged.append(found)
        elif (state is None or found.state is state) and (
            in_doubt is None or _doubt_of(settings, found) is in_doubt
        ):
            yield found
    if damaged:
        error = type(damaged[0])(
            f"{len(damaged)} of the namespace's records cannot be read; all others were yielded,"
            " and the error's addresses say where they are"
        )
        error.addresses = tuple(where for each in damaged for where in each.addresses)
        raise error from damaged[0]


def in_doubt(settings: Settings, found: ReplayRecord) -> bool:
    """Say whether the key is in doubt of which this is the record."""
    if not isinstance(found, ReplayRecord):
        raise InvalidParamsError(
            f"the record is a {type(found).__name__}; give what record() or records() shows"
        )
    return _doubt_of(settings, found)


def _doubt_of(settings: Settings, found: ReplayRecord) -> bool:
    return drive(is_in_doubt(found, settings.now()), Run(settings, found.key))
