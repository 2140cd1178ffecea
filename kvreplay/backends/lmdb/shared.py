"""Which LMDB environments this process has open, and for how many stores.

LMDB forbids opening the same files twice in a process. So store objects on the same files share an
:class:`~kvreplay.backends.lmdb.environment.Environment`, whose users are counted. A forked child
opens its own when a store notices that its environment is another process's.

Opening may wait for another process. Meanwhile only those who open the same path wait, by a lock of
that path: ``lock`` itself is held for moments.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kvreplay.backends._support import nested_call_error
from kvreplay.backends.file_lock import too_long
from kvreplay.backends.lmdb.environment import Environment
from kvreplay.backends.lmdb.files import identity_of, opening
from kvreplay.backends.lmdb.handle import Handle
from kvreplay.backends.lmdb.presence import Identity
from kvreplay.errors import ConfigError
from kvreplay.store import Durability, ForkSafeLock

__all__ = ["acquire", "lock", "reacquire", "release", "while_opening"]

FORK_PATIENCE: Final = 10.0
"""How many seconds a fork waits, at most, until other threads have ended their calls."""

_open: Final[dict[Environment, None]] = {}
_openers: Final[dict[object, tuple[str, ForkSafeLock]]] = {}
lock: Final = ForkSafeLock()
"""Guards which environments there are, how many stores each has, and who opens which path."""


# Loops under a lock are functions of their own, as in group_commit.py.


def _found(identity: Identity | None) -> Environment | None:
    for environment in list(_open):
        if environment.handle.files.identity == identity:
            return environment
    return None


def _lock_of(path: str) -> ForkSafeLock:
    for other, its_lock in _openers.values():
        if other == path:
            return its_lock
    return ForkSafeLock()


def while_opening(path: Path, action: Callable[[], None], bound: float) -> None:
    """Run ``action`` while no other thread opens the store at this path.

    Raises:
        StoreUnavailableError: one still does so after ``bound`` seconds, or this very thread does;
            nothing was done.
    """
    if lock.is_mine:
        raise nested_call_error()
    own, place = object(), os.path.realpath(path)
    try:
        with lock:
            its_lock = _lock_of(place)
            if its_lock.is_mine:
                raise nested_call_error()
            _openers[own] = place, its_lock
        try:
            if not its_lock.acquire(timeout=bound):
                raise too_long(
                    f"the opening of the LMDB store {path}", bound, "; another thread opens it"
                )
            action()
        finally:
            try:
                its_lock.release()
            except RuntimeError:
                pass  # it was not taken
    finally:
        if own in _openers:
            del _openers[own]


def acquire(
    path: Path,
    *,
    map_size: int,
    durability: Durability,
    max_readers: int,
    lock_timeout: float,
    creating: bool,
) -> Environment:
    """Open the environment, or share the one that this process has open; count one user more.

    The caller calls it in :func:`while_opening`, and notes at once what it is given.

    Raises:
        ConfigError: it is open with another durability.
        StoreError: a forked child cannot use it, since its parent was in a call of it.
    """
    identity = identity_of(path)
    with lock:
        found = None if identity is None else _found(identity)
    if found is not None and found.pid != os.getpid():
        _abandon(found)
    environment, handle, counted = None, None, False
    try:
        with lock:
            found = None if identity is None else _found(identity)
            if found is not None:
                _check_durability(found, durability)
                environment = found
                environment.handle.users += 1
                counted = True
        if environment is None:
            handle = Handle(
                path,
                map_size=map_size,
                durability=durability,
                max_readers=max_readers,
                lock_timeout=lock_timeout,
                creating=creating,
            )
            environment = Environment(handle)
            with lock:
                _open[environment] = None
                environment.handle.users += 1
                counted = True
    except BaseException:
        if environment is not None:
            if counted:
                environment.handle.users -= 1
            release(environment)
        elif handle is not None:
            try:
                handle.close()  # else LMDB would refuse every later opening in this process
            finally:
                handle.turn.close()
        raise
    assert environment is not None
    return environment


def _check_durability(environment: Environment, durability: Durability) -> None:
    if environment.handle.durability != durability:
        raise ConfigError(
            f"{environment.handle.path} is open in this process with"
            f" durability={environment.handle.durability}: open it with the same, not with"
            f" durability={durability}"
        )


def reacquire(inherited: Environment) -> Environment:
    """In a forked child, as :func:`acquire`: an environment of its own, not its parent's."""
    _abandon(inherited)
    handle = inherited.handle
    return acquire(
        handle.path,
        map_size=handle.map_size,
        durability=handle.durability,
        max_readers=handle.max_readers,
        lock_timeout=handle.turn.bound,
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
            if not environment.handle.users and environment in _open:
                del _open[environment]


def _abandon(inherited: Environment) -> None:
    inherited.handle.abandon()
    with lock:
        if inherited in _open:
            del _open[inherited]


# If another thread is in a call of LMDB at a fork, that call never returns in the child, and the
# child cannot use the files. So a fork waits for such calls. A fork that runs no hooks does not
# wait; if it came at a wrong moment, the store raises an error in the child.

_forking: Final = threading.local()


def _is_of_this_process(environment: Environment) -> bool:
    return environment.pid == os.getpid()


def _before_fork() -> None:
    _forking.opening = opening.acquire(timeout=FORK_PATIENCE)
    _forking.locked = lock.acquire(timeout=FORK_PATIENCE)
    _forking.held = list(filter(_is_of_this_process, list(_open)))
    for environment in _forking.held:
        environment.handle.hold_for_fork(FORK_PATIENCE)


def _after_fork_in_parent() -> None:
    for environment in _forking.held:
        environment.handle.gate.go_on()
    if _forking.locked:
        lock.release()
    if _forking.opening:
        opening.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
