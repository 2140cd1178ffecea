"""The command ``kvreplay``. An exception becomes an exit code here, and nowhere else.

=====  ===========================================================
0      everything is true
1      a step of the story is untrue
2      wrong usage or configuration, a missing extra, a failing store
130    interrupted
=====  ===========================================================
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from kvreplay.errors import KVReplayError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code.

    Raises:
        SystemExit: argparse's own, for ``--help``, ``--version`` and wrong usage.
    """
    asked = _parser().parse_args(arguments)
    try:
        code = _demo(asked)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # nobody reads any more, as in `kvreplay demo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except (KVReplayError, OSError) as error:
        print(f"kvreplay: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("kvreplay: interrupted", file=sys.stderr)
        return 130


def _demo(asked: argparse.Namespace) -> int:
    from kvreplay.demo import story  # imported late: it needs an extra, and is slow

    engines = story.ENGINES if asked.engine == "all" else (asked.engine,)
    return story.tell(engines, asked.dir)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvreplay",
        description="Restart-safe request replay over pluggable key-value stores.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo = commands.add_parser(
        "demo",
        help="show, on a real node process, that a retried request makes only one invoice",
        description="Start a real node process, race, kill and restart it, and check that"
        " async_order.request_invoice makes each invoice once. Needs the extra: pip install"
        " 'kvreplay[demo]'. The exit code is 1 if a step is untrue.",
    )
    demo.add_argument(
        "--engine",
        choices=("lmdb", "filesystem", "memory", "all"),
        default="all",
        help="the store to use (default: all, one after the other)",
    )
    demo.add_argument(
        "--dir",
        metavar="PATH",
        help="a new or empty directory for the stores, configs and logs, which are kept"
        " (default: a temporary one, removed at the end)",
    )
    return parser


def _version() -> str:
    try:
        return version("kvreplay")
    except PackageNotFoundError:  # a source tree that was never installed
        return "(not installed)"
