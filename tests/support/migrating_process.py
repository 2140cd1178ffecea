"""A process that migrates, and kills itself at a batch; or that writes to a store meanwhile."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from itertools import count
from typing import Any

from kvreplay import NotEqualError, Progress, migrate, open_store

HOT = ("p", "s", "hot")
"""The entry that is written again and again: a number, and the same number as its expiry."""


def main(told: dict[str, Any]) -> None:
    if "writes" in told:
        _write(told["writes"])
    else:
        _migrate(**told)


def _migrate(
    source: str, destination: str, batch: int, kill_at: int, until_written: bool = False
) -> None:
    calls = count(1)

    def look(progress: Progress) -> None:
        if next(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if until_written and progress.step == "verify" and not progress.done:
            with open_store(source) as one, open_store(destination) as other:
                copied = other.read(*HOT)
                while one.read(*HOT) == copied:
                    pass  # the writer is on its way

    try:
        done = migrate(source, destination, batch=batch, on_progress=look)
    except NotEqualError as error:
        print(json.dumps({"differences": error.differences}))
    else:
        print(json.dumps({"entries": done.entries, "copied": done.copied, "ordered": done.ordered}))


def _write(url: str) -> None:
    """Write until a line comes, and say the last number."""
    with open_store(url) as store:
        value = None
        for number in count(1):
            before, value = value, b"%d" % number
            store.check_and_put(*HOT, expected=before, value=value, expires_at=number)
            if number == 1:
                print("writing", flush=True)
            if select.select([sys.stdin], [], [], 0)[0]:
                break
    print(number, flush=True)
