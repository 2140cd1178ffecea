"""What engines check, written once: their options, and who may use a transaction."""

from __future__ import annotations

import errno
import math
import os
import threading
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

from kvreplay.errors import ConfigError, CorruptStoreError, StoreError, StoreUnavailableError
from kvreplay.store import Fault
from kvreplay.store.durations import seconds_of

__all__ = [
    "LOCK_TIMEOUT",
    "SCAN_BYTES",
    "SQLITE_LOCK",
    "OwnTransaction",
    "caused",
    "check_create",
    "check_durability",
    "check_lock_timeout",
    "check_path",
    "damaged_entries",
    "is_there",
    "nested_call_error",
    "own_transaction_error",
    "sqlite_store",
    "unreadable",
    "values_now",
]

K = TypeVar("K")
V = TypeVar("V")

LOCK_TIMEOUT: Final = 10.0
"""How many seconds a store waits for others, unless it is told."""

SCAN_BYTES: Final = 2**20
"""How many bytes of values a scan takes from one snapshot, about."""

SQLITE_LOCK: Final = "-kvreplay-lock"
"""What follows the name of an SQLite store in the name of the file of its turn."""


def sqlite_store(path: str | os.PathLike[str]) -> str | None:
    """Return what shows the other engines that an SQLite store is, or was, at a path."""
    shown = os.path.realpath(path) + SQLITE_LOCK  # the file itself must not be opened
    return shown if is_there(shown) else None


def values_now(dictionary: WeakKeyDictionary[K, V]) -> list[V]:
    """Return the values of a dictionary that other threads may change meanwhile."""
    # A walk over it would fail then. The references are copied in one step.
    keys = [ref() for ref in dictionary.keyrefs()]
    found = [dictionary.get(key) for key in keys if key is not None]
    return [value for value in found if value is not None]


def is_there(path: str) -> bool:
    """Whether a path leads to something, even to a link to nothing.

    Raises:
        OSError: it cannot be looked at. To call it absent could begin a new store over a lost one.
    """
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise
        return False
    return True


def check_create(create: object) -> None:
    """Raise a ConfigError if this is no bool: a text such as ``"false"`` would count as true."""
    if not isinstance(create, bool):
        raise ConfigError("create must be True or False")


def check_durability(durability: object) -> None:
    """Raise a ConfigError if this is not a :data:`kvreplay.store.Durability`."""
    if durability not in ("full", "process"):
        raise ConfigError('durability must be "full" or "process"')


def check_lock_timeout(lock_timeout: object, name: str = "lock_timeout") -> float:
    """Return it, in seconds, or raise a ConfigError if it is no duration above 0."""
    try:
        seconds = float(seconds_of(lock_timeout, name))
    except (ConfigError, OverflowError):  # an int of hundreds of digits
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise ConfigError(
            f'{name} must be above 0: seconds, a timedelta, or text such as "10s"; nothing was'
            " opened"
        )
    return seconds


def check_path(path: str | os.PathLike[str], engine: str) -> str:
    """Return the path as a text that the file system can take, or raise a ConfigError."""
    try:
        spelt = os.fspath(path)
        if not isinstance(spelt, str) or not spelt or "\0" in spelt:
            raise TypeError
    except TypeError:
        raise ConfigError(f"the path of a {engine} store must be a non-empty str") from None
    try:
        os.path.abspath(spelt)
    except FileNotFoundError:
        raise ConfigError(
            f"the path of a {engine} store is relative, and the current directory does not exist"
            " any more; nothing was opened: give an absolute path"
        ) from None
    return spelt


class OwnTransaction:
    """A caller's transaction, for the thread and the process that began it, until it ends."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self.pid = os.getpid()
        self.ended = False

    @property
    def is_inherited(self) -> bool:
        """Whether this process is a forked child of the one that began it."""
        return self.pid != os.getpid()

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread began it."""
        return self._thread == threading.get_ident() and not self.is_inherited

    def check_usable(self) -> None:
        """Raise a StoreError if the transaction cannot be used here and now."""
        if self.ended:
            raise StoreError("this transaction has ended; nothing was done")
        if not self.is_mine:
            raise StoreError(
                "a transaction belongs to the thread that began it, and not to a forked child;"
                " nothing was done"
            )


def caused(error: StoreError, cause: BaseException | None) -> StoreError:
    """Return the error with its cause, for whoever raises it elsewhere."""
    error.__cause__ = cause
    return error


def damaged_entries(number: int, store: str) -> CorruptStoreError:
    """Return the error at the end of a scan that has left out damaged entries."""
    return CorruptStoreError(
        f"{number} of the entries of {store} cannot be read: another program has put them there,"
        " or they are damaged; all others were told, and nothing was changed: write or remove"
        " those entries, or restore the store from a backup"
    )


def unreadable() -> Fault:
    """Return the fault of a store whose check has met a part that it cannot read."""
    return Fault(None, "a part of it is damaged and cannot be read: what follows was not checked")


def own_transaction_error(holder: str = "thread") -> StoreError:
    """Return the error for a thread, or a task, that would wait for its own transaction."""
    return StoreError(
        f"this {holder} holds a transaction of this store: change it through the transaction;"
        " nothing was changed"
    )


def nested_call_error() -> StoreError:
    """Return the error for a call that would wait for another call of its own thread.

    Only a signal handler, a finalizer or an operation that the store itself runs can make one.
    """
    return StoreUnavailableError(
        "this thread is in another call of this store, which a signal handler or a finalizer has"
        " interrupted: nothing was done; call again when that call has ended"
    )
