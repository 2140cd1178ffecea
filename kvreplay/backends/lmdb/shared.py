"""Which LMDB environments this process has open, for whom; and what a fork does to them.

LMDB forbids opening the same files twice in a process, so store objects on the same files
share an :class:`~kvreplay.backends.lmdb.environment.Environment`, counted.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

from kvreplay.backends.lmdb.environment import Environment
from kvreplay.backends.lmdb.files import identity_of
from kvreplay.backends.lmdb.gate import FORK_PATIENCE
from kvreplay.errors import ConfigError
from kvreplay.store import Durability, ForkSafeLock

__all__ = ["acquire", "release"]

_open: Final[dict[tuple[int, int] | None, Environment]] = {}
_lock: Final = ForkSafeLock()
_forking: Final = threading.local()


def acquire(path: Path, *, map_size: int, durability: Durability, max_readers: int) -> Environment:
    """Open the environment, or share the one that this process has open; count one user more.

    Raises:
        ConfigError: it is open with another durability.
    """
    with _lock:
        identity = identity_of(path)
        environment = None if identity is None else _open.get(identity)
        if environment is None:
            environment = Environment(
                path, map_size=map_size, durability=durability, max_readers=max_readers
            )
            _open[environment.identity] = environment
        elif environment.durability != durability:
            raise ConfigError(
                f"{path} is open in this process with durability={environment.durability}: open it"
                f" with the same, not with durability={durability}"
            )
        environment.users += 1
        return environment


def release(environment: Environment) -> None:
    """Count one user less; the last one closes the files, once no transaction is active."""
    with _lock:
        if environment.users == 1:
            environment.refuse_own_transaction()
        environment.users -= 1
        if environment.users:
            return
    # Without the lock: it may take as long as another thread's transaction.
    environment.close()
    with _lock:
        if not environment.users and _open.get(environment.identity) is environment:
            del _open[environment.identity]


def _before_fork() -> None:
    _forking.locked = _lock.acquire(timeout=FORK_PATIENCE)
    for environment in list(_open.values()):
        environment.before_fork()


def _after_fork_in_parent() -> None:
    for environment in list(_open.values()):
        environment.after_fork_in_parent()
    if _forking.locked:
        _lock.release()


def _after_fork_in_child() -> None:
    for environment in list(_open.values()):
        environment.after_fork_in_child()
    if _forking.locked:
        _lock.release()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
