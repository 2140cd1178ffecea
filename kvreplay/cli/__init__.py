"""The command ``kvreplay``. It needs the extra ``cli``, and says so."""

from kvreplay.cli.main import main

__all__ = ["main"]
