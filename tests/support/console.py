"""What the docs show of a terminal: commands, and what each of them prints."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

__all__ = ["Step", "in_a_terminal", "is_as_shown", "steps"]


@attrs.frozen
class Step:
    """One command of a page, and the lines that the page shows below it."""

    command: str
    shown: str


def steps(text: str) -> Iterator[Step]:
    """Yield the steps of a ``console`` block: a command begins with ``$``."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield Step(command, shown.rstrip("\n"))


def is_as_shown(printed: str, shown: str) -> bool:
    """Compare what was printed with what a page shows; ``...`` there stands for anything."""
    parts = [re.escape(part) for part in shown.split("...")]
    return re.fullmatch(".*".join(parts), printed.rstrip("\n"), re.DOTALL) is not None


def in_a_terminal(folder: Path) -> Mapping[str, str]:
    """Return the environment of a terminal in which ``kvreplay`` and its Python's programs are found."""
    command = folder / "bin" / "kvreplay"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m kvreplay "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    found = f"{command.parent}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    own = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return {**own, "PATH": found, "LC_ALL": "C.UTF-8", "NO_COLOR": "1", "COLUMNS": "100"}
