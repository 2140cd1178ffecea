"""Readers that keep old pages: dead ones are cleared, living ones are told of.

A page that a commit replaces is used again once no reader needs it. A process that is killed inside
a read leaves its slot in LMDB's table, and the file would grow with every commit, for ever. So when
the file has grown, the slots are looked at. A process that is only stopped has its slot rightly.
"""

from __future__ import annotations

from os import getpid
from pathlib import Path
from typing import Final

import lmdb

__all__ = ["Readers"]

_GROWTH: Final = 1 / 8  # of the file, after which the slots are looked at
_LEAST: Final = 64  # pages
_OLD: Final = 1000  # transactions, after which a reader is told of


class Readers:
    """Looks at the readers of one environment when its file has grown."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._limit = 0  # pages; while the file has no more, nobody looks
        self._told: set[int] = set()  # pids

    def look(self, env: lmdb.Environment, pages: int) -> None:
        """Clear the slots of dead readers if the file has grown since the last look."""
        if pages <= self._limit:
            return
        first = not self._limit
        self._limit = pages + max(int(pages * _GROWTH), _LEAST)
        try:
            env.reader_check()
            if not first:
                self._tell(env)
        except lmdb.Error:
            pass  # the next look does it; the commit does not depend on it

    def _tell(self, env: lmdb.Environment) -> None:
        """Warn of each process, once, whose read is so old that it keeps pages."""
        last = env.info()["last_txnid"]
        for line in env.readers().splitlines()[1:]:
            fields = line.split()
            if len(fields) == 3 and fields[2].isdigit() and last - int(fields[2]) > _OLD:
                pid = int(fields[0])
                if pid not in self._told and pid != getpid():  # a backup of one's own
                    self._told.add(pid)
                    import logging  # only when there is something to log

                    logging.getLogger("kvreplay").warning(
                        "the LMDB store %s grows, because the process %d has been inside a read for"
                        " %d changes: its pages cannot be used again; is it stopped, or does it"
                        " make a backup?",
                        self._path,
                        pid,
                        last - int(fields[2]),
                    )
