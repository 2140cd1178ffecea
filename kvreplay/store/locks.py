"""What survives a fork, an interrupt or a full stack, and what belongs to one thread or process.

For those who write a store.
"""

from __future__ import annotations

import _thread
import mmap
from collections.abc import Callable, Generator
from functools import partial
from os import getpid
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, TypeAlias, TypeVar
from weakref import ref

from kvreplay.errors import StoreError

__all__ = [
    "Bell",
    "ForkSafeLock",
    "ProcessMark",
    "ThreadBound",
    "process_mark",
    "require_room",
    "this_process",
]

T = TypeVar("T")


class ForkSafeLock:
    """A re-entrant mutex of which every process has its own.

    So a forked child finds it free, whichever thread of its parent held it, and even if the fork
    ran none of Python's hooks. What the lock guards may then be half-way through another thread's
    change: order the steps of a change so that what it guards is sound after each of them.

    Use it as ``with lock:``, or ``with lock.own():``, which is faster. An interrupt leaves it free:
    the block is entered and left by single C calls, between which CPython does not look for
    signals.
    """

    __slots__ = ("_last", "_locks")

    def __init__(self) -> None:
        self._locks: dict[int, Any] = {}
        self._last: tuple[ProcessMark, Any] | None = None  # the process that last asked for its own

    def own(self) -> Any:
        """Return this process's own lock, which is C's."""
        last = self._last
        if last is not None and last[0][0]:
            return last[1]
        # setdefault is one step, so that all threads of a new process get the same lock.
        lock = self._locks.setdefault(getpid(), _thread.RLock())
        self._last = this_process(), lock
        return lock

    # The ``with`` statement looks up both of these, and only then calls what they return: the
    # C methods of this process's lock.

    @property
    def __enter__(self) -> Any:
        return self.own().__enter__

    @property
    def __exit__(self) -> Any:
        return self.own().__exit__

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it, as :meth:`threading.Lock.acquire` does; say whether it was taken."""
        return bool(self.own().acquire(blocking, timeout))

    def release(self) -> None:
        """Give it back."""
        self.own().release()

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread holds it."""
        return bool(self.own()._is_owned())


ProcessMark: TypeAlias = "mmap.mmap | _PidMark"
_MADV_WIPEONFORK: Final = 18  # madvise(2), which Python gives no name


def process_mark() -> ProcessMark:
    """Return a mark whose first item is true in this process, and false in a forked child.

    It is a page that the kernel wipes in the child, at any kind of fork (Linux 4.14). To look at it
    costs a tenth of what ``getpid()`` does, which is a system call. Elsewhere it compares the pid.
    """
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except (OSError, ValueError, AttributeError):
        return _PidMark()
    page[0] = 1
    return page


class _PidMark:
    def __init__(self) -> None:
        self._pid = getpid()

    def __getitem__(self, index: int) -> bool:
        return self._pid == getpid()


_this_process: ProcessMark | None = None


def this_process() -> ProcessMark:
    """Return a :func:`process_mark` of this process, made when it is first asked for."""
    global _this_process
    mark = _this_process
    if mark is None or not mark[0]:
        mark = _this_process = process_mark()
    return mark


def require_room(frames: int = 8) -> None:
    """Raise a ``RecursionError`` now, if the stack has no room for so many frames more.

    Call it before something is taken that must be given back: giving it back needs a few frames,
    and may come when the work in between has failed because the stack was full.
    """
    if frames > 1:
        require_room(frames - 1)


class Bell:
    """Wakes the one thread that waits for it, even if that begins to wait later.

    An interrupt may lose a ring. So a wait has a limit, after which the thread looks for itself.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._lock.acquire()

    def wait(self, limit: float) -> None:
        """Wait until it rings, but not longer than ``limit`` seconds."""
        self._lock.acquire(timeout=limit)

    def ring(self) -> None:
        """Wake the thread that waits, or the next one to wait."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # it was rung before, and nobody has waited since


class _Method(property):
    """A property that returns a method. ``contextlib`` looks it up on the class, and calls that."""

    def __call__(self, instance: object, *args: object) -> Any:
        return self.__get__(instance)(*args)


class ThreadBound(Generic[T]):
    """A ``with`` block that only the thread that began it can end; if another tries, it stays open.

    The block is a generator that yields once, and gives back in its own ``finally`` what it holds.
    An interrupt ends it wherever it comes:

    * The block is entered by one C call, so nothing comes between the ``yield`` and the caller.
    * If an interrupt comes before the generator could go on at the block's end, the generator is
      closed at once: only the ``with`` statement holds it, and no traceback does.

    If the collector of garbage ends the ``with`` statement, it closes the generator too.
    """

    __slots__ = ("_block", "_thread")

    def __init__(self, block: Generator[T, None, None]) -> None:
        self._block = block
        self._thread: int | None = None

    if TYPE_CHECKING:

        def __enter__(self) -> T: ...

        def __exit__(self, *exc: object) -> bool | None: ...

    else:

        @_Method
        def __enter__(self) -> Any:
            self._thread = get_ident()
            return self._block.__next__

        @_Method
        def __exit__(self) -> Any:
            leave = partial(_leave, ref(self._block), self._thread)
            vars(leave)["block"] = self._block  # it lives as long as this, which is in no frame
            return leave


def _leave(
    block: Callable[[], Any],
    thread: int,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> bool:
    """Let the block go on to its end. The block is in no variable here, which a traceback keeps."""
    if thread != get_ident():
        raise StoreError(
            "only the thread that began a transaction can end it; it is still open there, and"
            " nothing was changed"
        )
    if block() is None:
        return False  # the collector has found both, and closes the generator by itself
    try:
        if error is None:
            next(block())
        else:
            block().throw(error)
    except StopIteration:
        return error is not None  # the block has dealt with it
    except BaseException as raised:
        if raised is error or (raised.__cause__ is error and isinstance(error, StopIteration)):
            error.with_traceback(trace)  # without this frame, which holds the error
            return False  # the ``with`` statement raises it again, as it was
        raise
    raise RuntimeError("the generator of a block yields once")
