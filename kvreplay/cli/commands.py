"""The table of commands."""

from __future__ import annotations

import click

from kvreplay import __version__
from kvreplay.cli.demo import demo
from kvreplay.cli.init import init
from kvreplay.cli.migrate import migrate

__all__ = ["commands"]


@click.group(
    no_args_is_help=False,
    subcommand_metavar="COMMAND [ARGUMENTS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def commands() -> None:
    """Restart-safe request replay over pluggable key-value stores."""


commands.add_command(init)
commands.add_command(migrate)
commands.add_command(demo)
