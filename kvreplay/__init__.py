"""Restart-safe request replay over pluggable key-value stores."""

from typing import TYPE_CHECKING

from kvreplay._protocol.digests import ParamsDigest
from kvreplay._protocol.keys import ReplayKey
from kvreplay._protocol.record import ReplayRecord, State
from kvreplay._protocol.steps import NOT_APPLIED, Applied, NotApplied, NotStored, Unknown
from kvreplay._runtime.requests import Outcome
from kvreplay.clock import Clock, SystemClock
from kvreplay.errors import (
    ClaimLostError,
    ClaimsInProgressError,
    ConfigError,
    CorruptRecordError,
    CorruptStoreError,
    DestinationNotEmptyError,
    ExpiredError,
    IndeterminateError,
    InDoubtError,
    InFlightError,
    InvalidNameError,
    InvalidParamsError,
    InvalidResponseError,
    InvalidValueError,
    KeyNotFoundError,
    KVReplayError,
    MigrationError,
    NotAppliedError,
    NotEqualError,
    OutcomeUnknownError,
    ParamsMismatchError,
    RecordError,
    ReplayClosedError,
    ReplayError,
    ResponseNotStorableError,
    ResponseTypeError,
    StaleFlowError,
    StoredFailureError,
    StoreError,
    StoreFullError,
    StoreNotFoundError,
    StoreUnavailableError,
    UnsupportedRecordVersionError,
)
from kvreplay.events import EVENT_KINDS, EventKind, ReplayEvent
from kvreplay.replay import Replay
from kvreplay.store import (
    AsyncAtomicKVStore,
    AsyncExpiringKVStore,
    AsyncInspectableKVStore,
    AsyncKVStore,
    AsyncKVTransaction,
    AsyncMigratableKVStore,
    AsyncPaginatedKVStore,
    AsyncTransactionalKVStore,
    AtomicKVStore,
    BatchingKVStore,
    Change,
    Entry,
    ExpiringKVStore,
    InspectableKVStore,
    JoinableKVStore,
    KVStoreSync,
    KVTransaction,
    MigratableKVStore,
    Page,
    PageWithValues,
    PaginatedKVStore,
    PromptKVStore,
    SweepResult,
    TransactionalKVStore,
)

if TYPE_CHECKING:
    from kvreplay._migration import Migrated, Progress, migrate
    from kvreplay._runtime.settings import ReplaySettings
    from kvreplay.aio import AsyncReplay
    from kvreplay.config.file import Config, load_config
    from kvreplay.config.registry import OpenStore, OpenTransactionalStore, open_store
    from kvreplay.store.in_process import InProcessAtomicStore

__version__ = "0.1.0"  # setup.cfg reads it here

# These are loaded when they are first used. A node with blocking calls needs no asyncio, and a node
# that constructs its store needs nothing that reads a configuration.
_LATE = {
    "AsyncReplay": "aio",
    "Config": "config.file",
    "InProcessAtomicStore": "store.in_process",
    "Migrated": "_migration",
    "OpenStore": "config.registry",
    "OpenTransactionalStore": "config.registry",
    "Progress": "_migration",
    "ReplaySettings": "_runtime.settings",
    "load_config": "config.file",
    "migrate": "_migration",
    "open_store": "config.registry",
}

__all__ = [
    "EVENT_KINDS",
    "NOT_APPLIED",
    "Applied",
    "AsyncAtomicKVStore",
    "AsyncExpiringKVStore",
    "AsyncInspectableKVStore",
    "AsyncKVStore",
    "AsyncKVTransaction",
    "AsyncMigratableKVStore",
    "AsyncPaginatedKVStore",
    "AsyncReplay",
    "AsyncTransactionalKVStore",
    "AtomicKVStore",
    "BatchingKVStore",
    "Change",
    "ClaimLostError",
    "ClaimsInProgressError",
    "Clock",
    "Config",
    "ConfigError",
    "CorruptRecordError",
    "CorruptStoreError",
    "DestinationNotEmptyError",
    "Entry",
    "EventKind",
    "ExpiredError",
    "ExpiringKVStore",
    "InDoubtError",
    "InFlightError",
    "InProcessAtomicStore",
    "IndeterminateError",
    "InspectableKVStore",
    "InvalidNameError",
    "InvalidParamsError",
    "InvalidResponseError",
    "InvalidValueError",
    "JoinableKVStore",
    "KVReplayError",
    "KVStoreSync",
    "KVTransaction",
    "KeyNotFoundError",
    "MigratableKVStore",
    "Migrated",
    "MigrationError",
    "NotApplied",
    "NotAppliedError",
    "NotEqualError",
    "NotStored",
    "OpenStore",
    "OpenTransactionalStore",
    "Outcome",
    "OutcomeUnknownError",
    "Page",
    "PageWithValues",
    "PaginatedKVStore",
    "ParamsDigest",
    "ParamsMismatchError",
    "Progress",
    "PromptKVStore",
    "RecordError",
    "Replay",
    "ReplayClosedError",
    "ReplayError",
    "ReplayEvent",
    "ReplayKey",
    "ReplayRecord",
    "ReplaySettings",
    "ResponseNotStorableError",
    "ResponseTypeError",
    "StaleFlowError",
    "State",
    "StoreError",
    "StoreFullError",
    "StoreNotFoundError",
    "StoreUnavailableError",
    "StoredFailureError",
    "SweepResult",
    "SystemClock",
    "TransactionalKVStore",
    "Unknown",
    "UnsupportedRecordVersionError",
    "load_config",
    "migrate",
    "open_store",
]


def __getattr__(name: str) -> object:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    return globals().setdefault(name, value)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
