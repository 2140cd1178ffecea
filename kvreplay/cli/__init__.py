"""The command ``kvreplay``."""

from kvreplay.cli.main import main

__all__ = ["main"]
