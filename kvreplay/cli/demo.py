"""``kvreplay demo``: the story of a retried request, on a real node process."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["add_to"]


def add_to(commands: Commands) -> None:
    """Add this command to those of the parser."""
    parser = commands.add_parser(
        "demo",
        help="show, on a real node process, that a retried request makes only one invoice",
        description="Start a real node process, race, kill and restart it, and check that"
        " async_order.request_invoice makes each invoice once. Needs the extra: pip install"
        " 'kvreplay[demo]'. The exit code is 1 if a step is untrue.",
    )
    parser.add_argument(
        "--engine",
        choices=("lmdb", "sqlite", "filesystem", "memory", "all"),
        default="all",
        help="the store to use (default: all, one after the other)",
    )
    parser.add_argument(
        "--dir",
        metavar="PATH",
        help="a new or empty directory for the stores, configs and logs, which are kept"
        " (default: a temporary one, removed at the end)",
    )
    parser.set_defaults(run=_run)


def _run(asked: argparse.Namespace) -> int:
    from kvreplay.demo import story  # imported late: it needs an extra, and is slow

    engines = story.ENGINES if asked.engine == "all" else (asked.engine,)
    return story.tell(engines, asked.dir)
