"""SQLite stores from outside: programs that open them, and ldk-node's own file."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any

from support.programs import Program, unmeasured

__all__ = ["NODE_INDEX", "NODE_TABLE", "Process", "file_of_a_node", "in_process", "locks_of", "raw"]

# ldk-node's own, from its public description, and not from kvreplay's.
NODE_TABLE = """CREATE TABLE ldk_node_data (
    primary_namespace TEXT NOT NULL,
    secondary_namespace TEXT DEFAULT "" NOT NULL,
    key TEXT NOT NULL CHECK (key <> ''),
    value BLOB,
    sort_order INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY ( primary_namespace, secondary_namespace, key )
)"""
NODE_INDEX = (
    "CREATE INDEX idx_ldk_node_data_paginated ON ldk_node_data"
    " (primary_namespace, secondary_namespace, sort_order DESC, key ASC)"
)


class Process(Program):
    """Python code in a process of its own: ``say`` and ``wait`` speak with the test."""

    HEAD = """
import logging, os, signal, sys
from kvreplay.backends.sqlite import SQLiteStore
from kvreplay.errors import *
logging.disable(logging.WARNING)
path = sys.argv[1]
def say(text): print(text, flush=True)
def wait(): return sys.stdin.readline().strip()
signal.alarm(100)
"""

    def __init__(self, code: str, path: Path, *, before: tuple[str, ...] = ()) -> None:
        command = [*before, sys.executable, "-W", "error", "-c", self.HEAD + code, str(path)]
        super().__init__(command, unmeasured())


def in_process(code: str, path: Path, **options: Any) -> str:
    """Run code to its good end; return what it said."""
    with Process(code, path, **options) as process:
        return str(process.join())


@contextlib.contextmanager
def raw(path: Path) -> Any:
    """A connection of another program's. Not while this process has the file open as a store."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def file_of_a_node(path: Path) -> Path:
    """Make what an ldk-node leaves: a few entries, in the order of their creation."""
    with raw(path) as node:
        node.execute(NODE_TABLE)
        node.execute(NODE_INDEX)
        node.execute("PRAGMA user_version = 3")
        for order, (primary, secondary, key) in enumerate(
            [
                ("", "", "manager"),
                ("monitors", "", "b_0"),
                ("monitors", "", "a_1"),
                ("", "", "graph"),
            ]
        ):
            node.execute(
                "INSERT INTO ldk_node_data VALUES (?, ?, ?, ?, ?)",
                (primary, secondary, key, key.encode() * 3, order + 1),
            )
    return path


def locks_of(pid: int, path: Path) -> list[str]:
    """The POSIX locks that a process holds on a file, as the kernel tells.

    While others lock and unlock, the kernel's list may leave one out, so it is read some times.
    """
    inode = os.stat(path).st_ino
    found = set()
    for _ in range(5):
        with open("/proc/locks", encoding="ascii") as locks:
            fields = [line.split() for line in locks]
        found |= {
            " ".join(each[3:4] + each[6:])
            for each in fields
            if each[1] == "POSIX" and each[4] == str(pid) and each[5].endswith(f":{inode}")
        }
    return sorted(found)
