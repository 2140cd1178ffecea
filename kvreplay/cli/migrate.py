"""``kvreplay migrate SOURCE DESTINATION``: all entries of one store into another."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from kvreplay._migration import Progress, migrate

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["add_to"]

_STEPS = {"look": "looking", "copy": "copying", "verify": "comparing"}


def add_to(commands: Commands) -> None:
    """Add this command to those of the parser."""
    parser = commands.add_parser(
        "migrate",
        help="copy all entries of one store into another, and compare them",
        description="Copy every entry with its expiry, in the order of creation where both stores"
        " know one, then read all again and compare. The source is not changed. If it is"
        " interrupted, run the same command again, and it goes on. Stop the programs that use the"
        " two stores first.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="lmdb:///var/lib/node/replay, or LDK's own files: filesystem:PATH?layout=ldk-v1,"
        " filesystem:PATH, sqlite:ldk_node_data.sqlite",
    )
    parser.add_argument("destination", metavar="DESTINATION", help="made if it is missing")
    parser.add_argument(
        "--into-used", action="store_true", help="copy into a store that has entries; none changes"
    )
    parser.add_argument(
        "--with-claims", action="store_true", help="copy requests that are in progress too"
    )
    parser.set_defaults(run=_run)


def _run(asked: argparse.Namespace) -> int:
    shown = _Shown()
    try:
        done = migrate(
            asked.source,
            asked.destination,
            into_used=asked.into_used,
            with_claims=asked.with_claims,
            on_progress=shown.show,
        )
    finally:
        shown.end()
    order = "in the order of creation" if done.ordered else "one of the stores knows no order"
    print(f"{done.entries} entries are equal in both; {done.copied} were copied now ({order})")
    if done.claims:
        print(f"{done.claims} requests in progress were copied: they will be in doubt")
    return 0


class _Shown:
    """The progress, on one line of a terminal; nothing is shown elsewhere."""

    def __init__(self) -> None:
        self._on = sys.stderr.isatty()
        self._any = False

    def show(self, progress: Progress) -> None:
        if self._on:
            self._any = True
            of = "" if progress.total is None else f" of {progress.total}"
            text = f"{_STEPS[progress.step]}: {progress.done}{of} entries"
            print(f"\r{text:<60}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._any:
            print(file=sys.stderr)
