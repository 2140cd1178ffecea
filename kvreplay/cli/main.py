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

from kvreplay.cli import demo, init, migrate
from kvreplay.errors import KVReplayError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code.

    Raises:
        SystemExit: argparse's own, for ``--help``, ``--version`` and wrong usage.
    """
    asked = _parser().parse_args(arguments)
    try:
        code: int = asked.run(asked)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kvreplay",
        description="Restart-safe request replay over pluggable key-value stores.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    init.add_to(commands)
    migrate.add_to(commands)
    demo.add_to(commands)
    return parser


def _version() -> str:
    try:
        return version("kvreplay")
    except PackageNotFoundError:  # a source tree that was never installed
        return "(not installed)"
