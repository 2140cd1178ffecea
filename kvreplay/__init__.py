"""Restart-safe request replay over pluggable key-value stores."""

from typing import TYPE_CHECKING

from kvreplay.clock import Clock, SystemClock
from kvreplay.errors import (
    ClaimLostError,
    ConfigError,
    CorruptRecordError,
    CorruptStoreError,
    ExpiredError,
    IndeterminateError,
    InDoubtError,
    InFlightError,
    InvalidNameError,
    InvalidParamsError,
    InvalidValueError,
    KeyNotFoundError,
    KVReplayError,
    OutcomeUnknownError,
    ParamsMismatchError,
    RecordError,
    ReplayError,
    ResponseNotStorableError,
    StaleFlowError,
    StoreError,
    StoreFullError,
    StoreUnavailableError,
    UnsupportedRecordVersionError,
)
from kvreplay.events import ReplayEvent
from kvreplay.keys import ReplayKey
from kvreplay.namespace import Outcome
from kvreplay.record import ReplayRecord, State
from kvreplay.replay import Replay
from kvreplay.steps import NOT_APPLIED, Applied, NotApplied
from kvreplay.store import (
    AtomicKVStore,
    BatchingKVStore,
    Change,
    ExpiringKVStore,
    KVStoreSync,
    KVTransaction,
    MigratableKVStore,
    SweepResult,
    TransactionalKVStore,
)

if TYPE_CHECKING:
    from kvreplay.aio import AsyncReplay
    from kvreplay.config import OpenStore, open_store
    from kvreplay.config_file import Config, ReplaySettings, load_config
    from kvreplay.in_process import InProcessAtomicStore

# What is loaded when it is asked for: a blocking node does without asyncio, and one that makes its
# store itself without all that reads a configuration.
_LATE = {
    "AsyncReplay": "aio",
    "Config": "config_file",
    "InProcessAtomicStore": "in_process",
    "OpenStore": "config",
    "ReplaySettings": "config_file",
    "load_config": "config_file",
    "open_store": "config",
}

__all__ = [
    "NOT_APPLIED",
    "Applied",
    "AsyncReplay",
    "AtomicKVStore",
    "BatchingKVStore",
    "Change",
    "ClaimLostError",
    "Clock",
    "Config",
    "ConfigError",
    "CorruptRecordError",
    "CorruptStoreError",
    "ExpiredError",
    "ExpiringKVStore",
    "InDoubtError",
    "InFlightError",
    "InProcessAtomicStore",
    "IndeterminateError",
    "InvalidNameError",
    "InvalidParamsError",
    "InvalidValueError",
    "KVReplayError",
    "KVStoreSync",
    "KVTransaction",
    "KeyNotFoundError",
    "MigratableKVStore",
    "NotApplied",
    "OpenStore",
    "Outcome",
    "OutcomeUnknownError",
    "ParamsMismatchError",
    "RecordError",
    "Replay",
    "ReplayError",
    "ReplayEvent",
    "ReplayKey",
    "ReplayRecord",
    "ReplaySettings",
    "ResponseNotStorableError",
    "StaleFlowError",
    "State",
    "StoreError",
    "StoreFullError",
    "StoreUnavailableError",
    "SweepResult",
    "SystemClock",
    "TransactionalKVStore",
    "UnsupportedRecordVersionError",
    "load_config",
    "open_store",
]


def __getattr__(name: str) -> object:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    return globals().setdefault(name, value)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
