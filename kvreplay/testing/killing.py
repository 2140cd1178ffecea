"""A handler that is killed half-way: what it leaves in the store is what a crash leaves."""

from __future__ import annotations

import inspect
import math
import os
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn

from kvreplay.errors import ConfigError, KeyNotFoundError
from kvreplay.store import AtomicKVStore
from kvreplay.testing.faulty_store import FaultyStore

__all__ = ["die", "kill_in_handler"]

PATIENCE = 60.0
"""After so many seconds a child counts as one that hangs."""

# What the child says: one of these, the last one with a text.
_PROBED: Final = b"P"
_DIES: Final = b"D"
_FAILED: Final = b"F"

_child: tuple[int, int] | None = None  # which process may die, and the pipe by which it says so


def kill_in_handler(store: AtomicKVStore, request: Callable[[], object]) -> None:
    """Make a request in a forked child, which is killed where its handler calls :func:`die`.

    It is a real ``SIGKILL``: afterwards the key is in doubt, as after a crash. What the handler did
    to the memory of its process is gone; what it did to files, or to the store, has happened. In a
    store that other machines share, such as PostgreSQL, it is in doubt once its lease has ended::

        def pay():
            send_payment()
            die()

        kill_in_handler(store, lambda: replay.execute(key, params, pay))
        with pytest.raises(InDoubtError):
            replay.execute(key, params, pay)

    Args:
        store: the store of the replay. It must be shared with the child: not ``memory:``.
        request: called in the child. If it returns something to await, as ``AsyncReplay`` does,
            that is awaited there, on a loop of its own.

    Raises:
        ConfigError: a forked child does not share this store; the request was not made.
        AssertionError: the child came to another end, or to none in a minute.
    """
    __tracebackhide__ = True
    entries: Any = store
    while isinstance(entries, FaultyStore):  # the probe below meets no fault
        entries = entries.inner
    probe = "kvreplay-testing", "", f"probe-{os.urandom(8).hex()}"
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()  # what waits there would be the child's to print, too
    heard, says = os.pipe()
    hears, told = os.pipe()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
            child = os.fork()
        if child == 0:
            os.close(told)  # so the end of its parent is the end of what it hears
            _be_the_child(entries, probe, request, says, hears)
    finally:
        os.close(says)
        os.close(hears)
    try:
        failure = _hear(heard, _PROBED)
        if failure is None:
            if not _is_shared(entries, probe):
                raise ConfigError(
                    f"a forked child does not share this store ({type(entries).__name__}), so a"
                    " kill would leave nothing in it; the request was not made: use a store on"
                    ' disk, such as open_store(f"lmdb:{tmp_path}/store")'
                )
            os.write(told, b"go")
            failure = _hear(heard, _DIES)
    finally:
        os.close(heard)
        os.close(told)
        os.kill(child, signal.SIGKILL)  # whatever it is still doing
        _, status = os.waitpid(child, 0)
    if failure is not None:
        code = os.waitstatus_to_exitcode(status)
        raise AssertionError(failure or f"the child ended before its handler did: {code}")


def die(*_args: object, **_options: object) -> NoReturn:
    """Kill this process at once, if it is the child of :func:`kill_in_handler`.

    It takes any arguments, so that it can stand in for what a handler calls.

    Raises:
        AssertionError: it is another process, and lives on.
    """
    if _child is None or _child[0] != os.getpid():
        raise AssertionError(
            "die() was called outside of kill_in_handler(), and this process lives on: make the"
            " request by kill_in_handler(store, lambda: ...)"
        )
    os.write(_child[1], _DIES)
    while True:
        os.kill(os.getpid(), signal.SIGKILL)


def _be_the_child(
    store: AtomicKVStore,
    probe: tuple[str, str, str],
    request: Callable[[], object],
    says: int,
    hears: int,
) -> NoReturn:
    """Make the request, and never come back: what is above belongs to the parent."""
    global _child
    doing = "the child of kill_in_handler() could not change the store"
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # not a time limit of the parent's test
        signal.alarm(math.ceil(PATIENCE) + 1)
        # It is due at once, so that a sweep removes what a killed parent leaves.
        store.check_and_put(*probe, expected=None, value=b"", expires_at=0)
        os.write(says, _PROBED)
        if os.read(hears, 2) == b"go":
            _child = os.getpid(), says
            doing = "the request did not come to die(), since it raised"
            result = request()
            if inspect.isawaitable(result):
                _run(result)
            text = (
                "the request came to its end without die(): either its handler does not call it,"
                " or the key was answered already"
            )
            os.write(says, _FAILED + text.encode())
    except BaseException:
        text = f"{doing}:\n{traceback.format_exc()}"
        os.write(says, _FAILED + text.encode("utf-8", "backslashreplace"))
    finally:
        os._exit(1)


def _run(awaitable: Awaitable[object]) -> None:
    import asyncio

    async def wait() -> None:
        await awaitable

    asyncio.run(wait())


def _hear(pipe: int, expected: bytes) -> str | None:
    """Wait for what the child says: ``None`` if it is that, else what went wrong, if it says so."""
    said = _read(pipe, 1)
    if said is None:
        return f"the child of kill_in_handler() has not come to die() in {PATIENCE:g} s"
    if said == expected:
        return None
    text = b""
    while part := _read(pipe, 4096):
        text += part
    return text.decode()


def _read(pipe: int, size: int) -> bytes | None:
    """Read from a pipe; ``None``: nobody has written to it in time."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return os.read(pipe, size) if poll.poll(PATIENCE * 1000) else None


def _is_shared(store: AtomicKVStore, probe: tuple[str, str, str]) -> bool:
    """Say whether what the child has put is here; take it away."""
    try:
        store.read(*probe)
    except KeyNotFoundError:
        return False
    store.check_and_put(*probe, expected=b"", value=None)
    return True
