"""The store contract: what a backend must do, and what it may use; see ``contract.py``."""

from kvreplay.store.closing import Closing, closed_error
from kvreplay.store.contract import (
    AtomicKVStore,
    BatchingKVStore,
    Change,
    Durability,
    Entry,
    ExpiringKVStore,
    InspectableKVStore,
    KVStoreSync,
    KVTransaction,
    MigratableKVStore,
    SweepResult,
    TransactionalKVStore,
    check_change,
    check_sweep,
    check_value,
    missing_methods,
)
from kvreplay.store.locks import Bell, ForkSafeLock, ThreadBound
from kvreplay.store.names import MAX_NAME_LENGTH, NAME, check_name, check_namespace, is_name

__all__ = [
    "MAX_NAME_LENGTH",
    "NAME",
    "AtomicKVStore",
    "BatchingKVStore",
    "Bell",
    "Change",
    "Closing",
    "Durability",
    "Entry",
    "ExpiringKVStore",
    "ForkSafeLock",
    "InspectableKVStore",
    "KVStoreSync",
    "KVTransaction",
    "MigratableKVStore",
    "SweepResult",
    "ThreadBound",
    "TransactionalKVStore",
    "check_change",
    "check_name",
    "check_namespace",
    "check_sweep",
    "check_value",
    "closed_error",
    "is_name",
    "missing_methods",
]
