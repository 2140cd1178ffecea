"""Restart-safe request replay over pluggable key-value stores."""

from typing import TYPE_CHECKING

from kvreplay.clock import Clock, SystemClock
from kvreplay.config import OpenStore, open_store
from kvreplay.config_file import Config, ReplaySettings, load_config
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
from kvreplay.in_process import InProcessAtomicStore
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
    """Load ``AsyncReplay`` when it is asked for: a blocking node does without asyncio."""
    if name != "AsyncReplay":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kvreplay.aio import AsyncReplay

    return globals().setdefault(name, AsyncReplay)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
