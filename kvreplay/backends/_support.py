"""What every engine checks, written once: its options, and whose a transaction is."""

from __future__ import annotations

import os
import threading

from kvreplay.errors import ConfigError, StoreError

__all__ = ["OwnTransaction", "check_durability", "check_path", "own_transaction_error"]


def check_durability(durability: object) -> None:
    """Raise a ConfigError unless it is a :data:`kvreplay.store.Durability`."""
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
    """A transaction of a caller's: of the thread and the process that began it, until it ends."""

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

        That thread is the child's main thread to Python. To a fork that ran no hooks the main
        thread is the parent's, from which programs fork that do so.
        """
        return self._thread in (threading.get_ident(), threading.main_thread().ident)

    def check_usable(self) -> None:
        """Raise a StoreError where the transaction cannot be used."""
        if self.ended:
            raise StoreError("this transaction has ended; nothing was done")
        if not self.is_mine:
            raise StoreError(
                "a transaction belongs to the thread that began it, and not to a forked child;"
                " nothing was done"
            )


def own_transaction_error() -> StoreError:
    """Return what a thread is told that would wait for its own transaction."""
    return StoreError(
        "this thread holds a transaction of this store: change it through the transaction;"
        " nothing was changed"
    )
