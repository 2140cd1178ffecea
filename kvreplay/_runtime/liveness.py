"""Who holds a claim, and whether that owner still runs handlers, where it can be looked up.

While a process runs handlers on a store, it holds a POSIX record lock (fcntl(2)) on a byte of its
own in the store's *owners file*. Such a lock belongs to the process. The kernel ends it when the
process ends or executes another program, and only after the process's last system call. No fork
inherits it, and it is seen in every PID namespace. So it is proof of life.

What is always true:

* The lock is taken before a claim is stored, and held until this process runs no handler on that
  store.
* Closing *any* descriptor of a file ends all locks that the process has in it. So this module
  alone opens owners files. It has at most one descriptor of each, and opens and closes under
  ``_lock``. Nothing else needs that lock, which is held while a file system may block.
* A file that other handlers use, and that was looked at a moment ago, is joined without ``_lock``:
  who joins becomes a user, and then looks whether the file still counts as open. Who closes takes
  it out of the open files, and then looks whether somebody has joined.
* A claim names the boot, the file and the byte. It is looked up only on that boot, and only if that
  very file is still the store's. Anywhere else nothing is known, and the claim's lease decides.
* A process's byte is a random number, so it is nobody else's: it says which claims are its own. The
  kernel does not show a process its own locks; there the tokens of the running handlers decide.
* A forked child is another process, with a byte of its own, whatever kind of fork made it.

A store without an owners file, or whose file cannot be locked, has claims that only their own
process can tell about. An owner is ``boot id:device:inode:byte:PID namespace:pid:start time``.
Without a lock the boot id is empty, and device and inode are 0. The last three are for people who
look for the process.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from enum import Enum
from functools import lru_cache, partial
from typing import Final

import attrs

from kvreplay._protocol.record import TOKEN_SIZE, Claim
from kvreplay.store import ForkSafeLock
from kvreplay.store.locks import ProcessMark, process_mark

__all__ = ["Liveness", "begin", "boot_id", "end", "look_up", "new_token", "this_process"]


class Liveness(Enum):
    """What is known about a claim's owner."""

    RUNNING = "running"
    GONE = "gone"
    UNKNOWN = "unknown"  # the lease decides


_Place = tuple[int, int]
"""A file's device and inode."""

_NOWHERE: Final = (0, 0)
_MODE: Final = 0o600
_TOKENS: Final = 64  # that are made at once
_FRESH: Final = 0.01  # seconds; how long a look at a file is good for others who begin


@attrs.define(eq=False)
class _OwnersFile:
    """An open owners file; its users are the tokens of running handlers, and who looks just now."""

    place: _Place
    fd: int
    users: set[object] = attrs.field(factory=set)
    looked_at: float = -1.0  # monotonic: when it was at its path, and the byte was locked


class _Process:
    """This process as an owner, and what it has open."""

    def __init__(self) -> None:
        self.mark = process_mark()
        self.tokens: list[bytes] = []  # nobody has had them yet
        self.byte = int.from_bytes(os.urandom(8)) >> 2  # an offset in a file is less than 2**63
        self.for_people = _for_people()
        self.running: dict[bytes, _OwnersFile | None] = {}
        self.files: dict[_Place, _OwnersFile] = {}
        self.last: dict[str, _OwnersFile] = {}  # that was looked at, by path

    def owner(self, boot: str = "", place: _Place = _NOWHERE) -> str:
        return f"{boot}:{place[0]}:{place[1]}:{self.byte}:{self.for_people}"

    def join(self, path: str, token: bytes) -> _OwnersFile | None:
        """Become a user of a file that others use; ``None``: it must be looked at first."""
        file = self.last.get(path)
        if file is None or not file.users or time.monotonic() > file.looked_at + _FRESH:
            return None
        self.running[token] = file
        file.users.add(token)
        return file if self.files.get(file.place) is file else None

    def enter(self, path: str, flags: int) -> _OwnersFile:
        """Return the owners file at this path, open. The caller adds a user at once."""
        file = self._opened(path) if self.files else None
        if file is not None:
            return file
        fds: list[int] = []
        try:
            fds.extend(map(os.open, (path,), (flags,), (_MODE,)))  # one step, for an interrupt
            place = _place(os.fstat(fds[0]))
            file = self.files.get(place)  # it was moved here just now: never close this one
            if file is None:
                file = self.files[place] = _OwnersFile(place, fds[0])
            fds = []
            return file
        finally:
            if fds:
                os.close(fds[0])

    def _opened(self, path: str) -> _OwnersFile | None:
        try:
            file = self.files.get(_place(os.stat(path)))
        except FileNotFoundError:
            return None
        if file is not None and not _is_open(file):
            del self.files[file.place]  # closed by somebody; its number may be another file's now
            return None
        return file

    def leave(self, file: _OwnersFile, user: object) -> None:
        """Withdraw a user; the last one closes the file."""
        file.users.discard(user)
        self.close_unused(file)

    def close_unused(self, file: _OwnersFile) -> None:
        """Close a file that nobody uses, which gives the byte back."""
        if not file.users and self.files.get(file.place) is file:
            self.last = {path: each for path, each in self.last.items() if each is not file}
            del self.files[file.place]
            if file.users:  # somebody has joined just now
                self.files[file.place] = file
                return
            try:
                os.close(file.fd)
            except OSError:
                pass  # Linux closes it, whatever it reports


_lock: Final = ForkSafeLock()
"""Guards this process's files, and orders all opening and closing of them."""
_process: _Process | None = None


def _this_process() -> _Process:
    global _process
    if _process is None or not _process.mark[0]:
        _process = _Process()
    return _process


def this_process() -> ProcessMark:
    """Return what tells this process: its first item is true here, and false in a forked child."""
    return _known_process().mark


def _known_process() -> _Process:
    """Return this process. The lock is taken only to make it."""
    process = _process
    if process is not None and process.mark[0]:
        return process
    with _lock.own():
        return _this_process()


def new_token() -> bytes:
    """Return a token for a run; nothing is noted before :func:`begin`.

    The kernel is asked for many at once: each such call lets other threads come in between.
    """
    tokens = _known_process().tokens
    try:
        return tokens.pop()
    except IndexError:
        fresh = os.urandom(_TOKENS * TOKEN_SIZE)
        own, *others = [fresh[n : n + TOKEN_SIZE] for n in range(0, len(fresh), TOKEN_SIZE)]
        tokens.extend(others)
        return own


def begin(token: bytes, owners_file: str | None) -> str:
    """Note that the token's handler runs in this process until :func:`end`; return the owner.

    It never fails for want of a lock: then the owner is one whose claims the lease decides. With an
    owners file it may block, as opening a file does.
    """
    process = _known_process()
    process.running[token] = None
    if owners_file is None:
        return process.owner()
    if (file := process.join(owners_file, token)) is not None:
        return process.owner(boot_id(), file.place)
    with _lock.own():
        try:
            boot = boot_id()
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            file = process.enter(owners_file, flags)
            process.running[token] = file
            file.users.add(token)
            # Even if it is held: somebody may have closed another descriptor of that file.
            _take(file.fd, process.byte)
            process.last[owners_file] = file
            file.looked_at = time.monotonic()
        except OSError:  # a read-only or full file system, no locks there, no descriptor left
            return process.owner()
        return process.owner(boot, file.place)


def end(token: bytes, closing: Callable[[Callable[[], None]], object] | None = None) -> None:
    """Note that the token's handler does not run any more, however it ended.

    A second call does nothing, and completes a first one that was interrupted.

    Args:
        closing: calls what closes the file, where that must not happen here, since it may block. It
            is not asked while another handler needs the file.
    """
    process = _process
    if process is None or not process.mark[0]:
        return  # a forked child: the run, and the number of the descriptor, are its parent's
    file = process.running.get(token)
    if file is not None:
        file.users.discard(token)
        if not file.users:  # the file is closed only if nobody has come before that
            close = partial(_close_unused, process, file)
            close() if closing is None else closing(close)
    process.running.pop(token, None)


def _close_unused(process: _Process, file: _OwnersFile) -> None:
    with _lock.own():
        if process.mark[0]:
            process.close_unused(file)


def look_up(claim: Claim, owners_file: str | None) -> Liveness:
    """Look the claim's owner up.

    Args:
        owners_file: the owners file of the store that has the claim.
    """
    boot, *numbers = claim.owner.split(":")
    try:
        device, inode, byte = map(int, numbers[:3])
    except ValueError:
        return Liveness.UNKNOWN
    if not 0 <= byte < 2**62:
        return Liveness.UNKNOWN
    place = device, inode
    process = _known_process()
    if byte == process.byte:
        return Liveness.RUNNING if claim.token in process.running else Liveness.GONE
    if owners_file is None or place == _NOWHERE:
        return Liveness.UNKNOWN
    looker = object()
    with _lock.own():
        try:
            if boot != boot_id():
                return Liveness.UNKNOWN
            file = process.enter(owners_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                file.users.add(looker)
                if file.place != place:
                    return Liveness.UNKNOWN
                return Liveness.RUNNING if _is_locked(file.fd, byte) else Liveness.GONE
            finally:
                try:
                    process.leave(file, looker)
                except BaseException:  # an interrupt
                    process.leave(file, looker)
                    raise
        except (FileNotFoundError, PermissionError):
            return Liveness.UNKNOWN
        except OSError:
            # It cannot be looked up just now, as without a descriptor left. The lease does not
            # decide then: the owner has a lock, which outlives any lease.
            return Liveness.RUNNING


# Windows has no fcntl, and no store with an owners file.


def _take(fd: int, byte: int) -> None:
    """Lock this byte, or raise an ``OSError``."""
    import fcntl

    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)


_FLOCK: Final = "hhqqi0q"  # struct flock of Linux: type, whence, start, length, pid


def _is_locked(fd: int, byte: int) -> bool:
    """Say whether another process holds this byte."""
    import fcntl

    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind, *_ = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return bool(kind != fcntl.F_UNLCK)


def _is_open(file: _OwnersFile) -> bool:
    """Say whether its descriptor is still that file's."""
    try:
        return _place(os.fstat(file.fd)) == file.place
    except OSError:
        return False


def _place(found: os.stat_result) -> _Place:
    return found.st_dev, found.st_ino


@lru_cache(maxsize=1)  # a failure is not kept
def boot_id() -> str:
    """Return what tells this boot of this kernel; an ``OSError``: it is not shown."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _for_people() -> str:
    """Return what helps to find this process: its PID namespace, pid, and start in clock ticks."""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            start = file.read().rpartition(")")[2].split()[19]
    except OSError:
        return f"0:{os.getpid()}:0"
    return f"{namespace}:{os.getpid()}:{start}"
