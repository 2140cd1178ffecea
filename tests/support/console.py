"""What the docs show of a terminal: commands, and what each of them prints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import attrs

__all__ = ["Step", "is_as_shown", "steps"]

DOCS = Path(__file__).parents[2] / "docs"


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
