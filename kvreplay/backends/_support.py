"""What engines check, written once: their options, and who may use a transaction."""

from __future__ import annotations

import os
import threading

from kvreplay.errors import ConfigError, StoreError

__all__ = [
    "OwnTransaction",
    "check_durability",
    "check_path",
    "own_transaction_error",
]


def check_durability(durability: object) -> None:
    """Raise a ConfigError if this is not a :data:`kvreplay.store.Durability`."""
    if durability not in ("full", "process"):
        raise ConfigError('durability must be "full" or "process"')


def check_path(path: str | os.PathLike[str], engine: str) -> str:
    """Return the path as a text that the file system can take, or raise a ConfigError."""
    try:
        spelt = os.fspath(path)
        if not isinstance(spelt, str) or not spelt or "\0" in spelt:
            raise TypeError
    except TypeError:
        raise ConfigError(f"the path of a {engine} store must be a non-empty str") from None
    return spelt


class OwnTransaction:
    """A caller's transaction, for the thread and the process that began it, until it ends."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._pid = os.getpid()
        self.ended = False

    @property
    def is_inherited(self) -> bool:
        """Whether this process is a forked child of the one that began it."""
        return self._pid != os.getpid()

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread began it."""
        return self._thread == threading.get_ident() and not self.is_inherited

    @property
    def was_of_forking_thread(self) -> bool:
        """In a forked child: whether the thread that forked had begun it.

        After a fork, Python calls that thread the child's main thread. A fork that ran no hooks
        changes nothing for Python: here it counts as made by the parent's main thread.
        """
        return self._thread in (threading.get_ident(), threading.main_thread().ident)

    def check_usable(self) -> None:
        """Raise a StoreError if the transaction cannot be used here and now."""
        if self.ended:
            raise StoreError("this transaction has ended; nothing was done")
        if not self.is_mine:
            raise StoreError(
                "a transaction belongs to the thread that began it, and not to a forked child;"
                " nothing was done"
            )


def own_transaction_error() -> StoreError:
    """Return the error for a thread that would wait for its own transaction."""
    return StoreError(
        "this thread holds a transaction of this store: change it through the transaction;"
        " nothing was changed"
    )
