"""The table of commands."""

from __future__ import annotations

import click

from kvreplay import __version__
from kvreplay.cli.backup import backup, compact, restore
from kvreplay.cli.check import check
from kvreplay.cli.completion import completion
from kvreplay.cli.demo import demo
from kvreplay.cli.doubt import doubt
from kvreplay.cli.init import init
from kvreplay.cli.ls import ls
from kvreplay.cli.migrate import migrate
from kvreplay.cli.settle import forget, release, resolve
from kvreplay.cli.show import find, show
from kvreplay.cli.stat import stat
from kvreplay.cli.sweep import sweep

__all__ = ["commands"]

_LOOK = (stat, ls, show, find, doubt, check)
_CHANGE = (resolve, release, forget, sweep)
_STORES = (init, backup, restore, compact, migrate)
_OTHERS = (demo, completion)


class _Grouped(click.Group):
    """Its help shows the commands by what they are for, and not by the alphabet."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, members in (
            ("Look at a store, whoever uses it", _LOOK),
            ("Change one replay namespace", _CHANGE),
            ("Whole stores", _STORES),
            ("More", _OTHERS),
        ):
            with formatter.section(title):
                formatter.write_dl(
                    [(each.name or "", each.get_short_help_str(limit=80)) for each in members]
                )


@click.group(
    cls=_Grouped,
    no_args_is_help=False,
    subcommand_metavar="COMMAND [ARGUMENTS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0: done, and all is right. 1: no such record, a fault that check found,"
    " nothing that could be settled, or a step of the demo that is untrue. 2: wrong usage or"
    " configuration, a missing extra, no such store, or a store that fails. 130: interrupted."
    " 141: nobody reads any more.",
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def commands() -> None:
    """Restart-safe request replay over pluggable key-value stores.

    A STORE is a URL, as in your configuration: lmdb:///var/lib/node/replay. Only init, restore and
    migrate make one. Run as root, a command acts as the user who owns the store.
    """


for _each in (*_LOOK, *_CHANGE, *_STORES, *_OTHERS):
    commands.add_command(_each)
