"""Runs the command ``kvreplay``. An exception becomes an exit code here, and nowhere else.

=====  =============================================================
0      done, and all is right
1      no such record; a fault was found; nothing could be settled; a
       step of the demo is untrue
2      wrong usage or configuration, a missing extra, no such store, a
       failing store, or nobody reads the output any more
130    interrupted
=====  =============================================================
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from kvreplay.errors import KVReplayError

__all__ = ["main"]

_EXTRA = ("click", "rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code. What went wrong is told in one line."""
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
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


def _run(arguments: Sequence[str]) -> int:
    try:
        import click
        from click.shell_completion import shell_complete

        from kvreplay.cli.commands import commands
        from kvreplay.cli.completion import VARIABLE
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        print(
            f'kvreplay: the command needs the module "{missing}", which is not installed;'
            " nothing was done. Install it: pip install 'kvreplay[cli]'",
            file=sys.stderr,
        )
        return 2
    if asked := os.environ.get(VARIABLE):
        return shell_complete(commands, {}, "kvreplay", VARIABLE, asked)
    try:
        # Not click's own main(), which has other exit codes for an interrupt and a broken pipe.
        with commands.make_context("kvreplay", list(arguments)) as context:
            code: int = commands.invoke(context)
            return code
    except click.exceptions.Exit as end:  # --help and --version
        return end.exit_code
    except click.exceptions.Abort:  # at a question
        raise KeyboardInterrupt from None
    except click.UsageError as error:
        path = "kvreplay" if error.ctx is None else error.ctx.command_path
        said = " ".join(error.format_message().split())
        stop = "" if said.endswith((".", "?")) else "."
        print(f"kvreplay: {said}{stop} Nothing was done: see {path} --help", file=sys.stderr)
        return 2
