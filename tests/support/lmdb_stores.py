"""LMDB stores from outside and from inside: programs that open them, and what no public call shows."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

import lmdb

from kvreplay.backends.lmdb import LMDBStore
from kvreplay.backends.lmdb import files as lmdb_files
from kvreplay.backends.lmdb import shared as lmdb_sharing
from kvreplay.testing.entries import Address, content
from support.programs import Program, unmeasured

__all__ = [
    "KIB",
    "MARKER",
    "Process",
    "commits",
    "environment_of",
    "filled",
    "handle_of",
    "in_process",
    "map_size",
    "nothing_is_open",
    "open_files_of",
    "traced",
    "users_of",
]

KIB = 1024
MARKER = "kvreplay.format"


class Process(Program):
    """Python code in a process of its own: ``say`` and ``wait`` speak with the test."""

    HEAD = """
import os, sys, signal
from kvreplay.backends.lmdb import LMDBStore
from kvreplay.errors import *
path = sys.argv[1]
def say(text): print(text, flush=True)
def wait(): return sys.stdin.readline().strip()
signal.alarm(100)
"""

    def __init__(
        self, code: str, path: Path, *, before: tuple[str, ...] = (), **environment: str
    ) -> None:
        command = [*before, sys.executable, "-W", "error", "-c", self.HEAD + code, str(path)]
        super().__init__(command, unmeasured() | environment)


def in_process(code: str, path: Path, **options: Any) -> str:
    """Run code to its good end; return what it said."""
    with Process(code, path, **options) as process:
        return str(process.join())


def traced(log: Path, root: Path, calls: str, fault: str = "") -> tuple[str, ...]:
    """A command to put before another: strace logs its calls on the data file, and injects a fault."""
    data = str(root / "data.mdb")
    command = ("strace", "-f", "--seccomp-bpf", "-o", str(log), "-P", data, "-e", f"trace={calls}")
    return (*command, "-e", f"inject={calls}:{fault}") if fault else command


def filled(root: Path) -> dict[Address, bytes]:
    """Fill a store with some pages of entries, close it, and return what it holds."""
    with LMDBStore(root) as store:
        for n in range(50):
            store.write("p", "s", f"k{n}", bytes([n]) * 3000)
        return content(store)


def open_files_of(root: Path) -> list[str]:
    """What this process has open of a store."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [link for link in links if f"{link}/".startswith(f"{root.resolve()}/")]


# Inside.


def environment_of(store: LMDBStore) -> Any:
    """The files of a store, as all stores of this process share them."""
    return store._opened()


def handle_of(store: LMDBStore) -> lmdb.Environment:
    """The driver's own handle, which is another one after the files were opened again."""
    handle = environment_of(store).handle.gate.handle
    assert handle is not None
    return handle


def map_size(store: LMDBStore) -> int:
    handle = environment_of(store).handle
    env = handle.opened()
    with handle.gate.own():
        return int(env.info()["map_size"])


def commits(store: LMDBStore) -> int:
    """How many transactions that changed something the files have seen."""
    return int(environment_of(store).handle.read(lambda txn: txn.id()))


def users_of(root: Path) -> int:
    """How many stores of this process share the files."""
    environment = lmdb_sharing._found(lmdb_files.identity_of(root))
    assert environment is not None
    return int(environment.handle.users)


def nothing_is_open() -> bool:
    """Whether this process has forgotten every LMDB store."""
    return not lmdb_sharing._open
