"""Which LMDB environments this process has open, and for how many stores.

LMDB forbids opening the same files twice in a process. So store objects on the same files share an
:class:`~kvreplay.backends.lmdb.environment.Environment`, whose users are counted. A forked child
opens its own when a store notices that its environment is another process's.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

from kvreplay.backends.lmdb.environment import Environment
from kvreplay.backends.lmdb.files import identity_of
from kvreplay.backends.lmdb.handle import Handle
from kvreplay.errors import ConfigError
from kvreplay.store import Durability, ForkSafeLock

__all__ = ["acquire", "lock", "reacquire", "release"]

FORK_PATIENCE: Final = 10.0
"""How many seconds a fork waits, at most, until other threads have ended their calls."""

_open: Final[dict[tuple[int, int] | None, Environment]] = {}
lock: Final = ForkSafeLock()
"""Guards which environments there are, and which one a store has."""


def acquire(
    path: Path, *, map_size: int, durability: Durability, max_readers: int, creating: bool = True
) -> Environment:
    """Open the environment, or share the one that this process has open; count one user more.

    The caller holds ``lock``, and notes at once what it is given.

    Raises:
        ConfigError: it is open with another durability.
        StoreError: a forked child cannot use it, since its parent was in a call of it.
    """
    identity = identity_of(path)
    environment = None if identity is None else _open.get(identity)
    if environment is not None and environment.pid != os.getpid():
        _abandon(environment)
        environment = None
    handle = None
    try:
        if environment is None:
            handle = Handle(
                path,
                map_size=map_size,
                durability=durability,
                max_readers=max_readers,
                creating=creating,
            )
            environment = Environment(handle)
            _open[environment.identity] = environment
        elif environment.handle.durability != durability:
            raise ConfigError(
                f"{path} is open in this process with durability={environment.handle.durability}:"
                f" open it with the same, not with durability={durability}"
            )
        environment.handle.users += 1
    except BaseException:
        if environment is not None:
            release(environment)
        elif handle is not None:
            handle.close()  # else LMDB would refuse every later opening in this process
        raise
    return environment


def reacquire(inherited: Environment) -> Environment:
    """In a forked child, as :func:`acquire`: an environment of its own, not its parent's."""
    _abandon(inherited)
    handle = inherited.handle
    return acquire(
        handle.path,
        map_size=handle.map_size,
        durability=handle.durability,
        max_readers=handle.max_readers,
        creating=False,
    )


def release(environment: Environment) -> None:
    """Close the files of an environment that no store uses, once no transaction is active.

    A second call goes on where an interrupt has ended the first one.
    """
    # Without the lock: it may take as long as another thread's transaction.
    if not environment.handle.users:
        environment.close()
        with lock:
            if not environment.handle.users and _open.get(environment.identity) is environment:
                del _open[environment.identity]


def _abandon(inherited: Environment) -> None:
    inherited.handle.abandon()
    if _open.get(inherited.identity) is inherited:
        del _open[inherited.identity]


# If another thread is in a call of LMDB at a fork, that call never returns in the child, and the
# child cannot use the files. So a fork waits for such calls. A fork that runs no hooks does not
# wait; if it came at a wrong moment, the store raises an error in the child.

_forking: Final = threading.local()


def _is_of_this_process(environment: Environment) -> bool:
    return environment.pid == os.getpid()


def _before_fork() -> None:
    _forking.locked = lock.acquire(timeout=FORK_PATIENCE)
    _forking.held = list(filter(_is_of_this_process, list(_open.values())))
    for environment in _forking.held:
        environment.handle.hold_for_fork(FORK_PATIENCE)


def _after_fork_in_parent() -> None:
    for environment in _forking.held:
        environment.handle.gate.go_on()
    if _forking.locked:
        lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
