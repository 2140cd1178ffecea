"""``kvreplay completion SHELL``: the script that completes commands and options in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["VARIABLE", "completion"]

VARIABLE = "_KVREPLAY_COMPLETE"
"""What the scripts set when they ask for completions: click's own name for it."""


@click.command(short_help="Print the script that completes commands in your shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """Print the script that completes commands and options in SHELL.

    \b
    bash:  eval "$(kvreplay completion bash)"              in ~/.bashrc
    zsh:   eval "$(kvreplay completion zsh)"               in ~/.zshrc
    fish:  kvreplay completion fish | source               in config.fish
    """
    made = get_completion_class(shell)
    assert made is not None  # the choices are click's own
    print(made(context.find_root().command, {}, "kvreplay", VARIABLE).source())
    return 0
