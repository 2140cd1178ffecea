"""Runs the command ``kvreplay``. An exception becomes an exit code here, and nowhere else.

=====  =============================================================
0      done, and all is right
1      no such record; a fault was found; nothing could be settled; a
       step of the demo is untrue
2      wrong usage or configuration, a missing extra, no such store, or a
       failing store
130    interrupted
141    nobody reads the output any more, as if SIGPIPE had ended it
=====  =============================================================
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from kvreplay.cli.streams import complain, have_streams, write_no_more
from kvreplay.errors import KVReplayError

__all__ = ["main"]

_EXTRA = ("click", "rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit code. What went wrong is told in one line."""
    have_streams()
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # nobody reads any more, as in `kvreplay demo | head`
        write_no_more(sys.stdout)
        return 141
    except KVReplayError as error:
        complain(f"kvreplay: {error}{_as_whom()}")
        return 2
    except OSError as error:
        if error.filename is None:  # what was printed could not be written
            write_no_more(sys.stdout)
        complain(
            f"kvreplay: {error.filename or 'the output'}: {error.strerror or error}{_as_whom()}"
        )
        return 2
    except KeyboardInterrupt:
        complain("kvreplay: interrupted")
        return 130


def _as_whom() -> str:
    """Say as whom root has acted, since that user's rights are less than root's."""
    from kvreplay._inspection.ownership import acting_as

    user = acting_as()
    return "" if user is None else f" (this was tried as {user}, who owns the store)"


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
        complain(
            f'kvreplay: the command needs the module "{missing}", which is not installed;'
            " nothing was done. Install it: pip install 'kvreplay[cli]'"
        )
        return 2
    if asked := os.environ.get(VARIABLE):
        try:
            return shell_complete(commands, {}, "kvreplay", VARIABLE, asked)
        except KeyError:  # no shell has asked
            return 2
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
        complain(f"kvreplay: {said}{stop} Nothing was done: see {path} --help")
        return 2
