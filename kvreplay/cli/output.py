"""What the commands print: lines for people, and JSON for programs.

A line never breaks in a pipe. On a terminal, what does not fit is cut, and ends with "…". What a
client has chosen, such as a scope, is shown with its control characters written as escapes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console

from kvreplay._inspection import datetime_of, is_empty
from kvreplay.cli.streams import complain

__all__ = [
    "age",
    "key_line",
    "many",
    "moment",
    "print_columns",
    "print_json",
    "print_line",
    "size",
    "tell_if_empty",
    "text",
]

_SHORTEST = 9  # characters that are left of a scope


def print_json(value: object, *, indent: int | None = None) -> None:
    """Print one JSON document: on one line, or indented."""
    shown = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, ensure_ascii=not shown, indent=indent))


def print_line(line: str) -> None:
    """Print one line; on a terminal no more of it than fits."""
    width = _width()
    if width is not None and cell_len(line) > width:
        line = set_cell_size(line, width - 1) + "…"
    print(line)


def print_columns(
    rows: Iterable[Sequence[str]], *, right: Sequence[int] = (), whole: bool = False
) -> None:
    """Print rows whose columns stand under each other; those in ``right`` are flush right.

    Args:
        whole: never cut a line, but let the terminal break it.
    """
    rows = list(rows)
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.rjust(width) if n in right else set_cell_size(cell, width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  ".join(cells).rstrip()
        print(line) if whole else print_line(line)


def key_line(before: str, scope: str, id_: str, operation: str | None) -> str:
    """Return a line that ends with a key; where it does not fit, the scope is shortened first."""
    scope, end = text(scope), text(id_)
    if operation is not None:
        end += f"  operation {text(operation)}"
    line = f"{before}{scope}  {end}"
    width = _width()
    if width is not None and (over := cell_len(line) - width) > 0 and scope.isascii():
        keep = max(len(scope) - over, _SHORTEST)
        if keep < len(scope):
            line = f"{before}{scope[: keep - 4]}…{scope[-3:]}  {end}"
    return line


def many(count: int, one: str, more: str | None = None) -> str:
    """Return a number and a noun: ``1 fault``, ``2 faults``."""
    return f"{count:,} {one if count == 1 else more or f'{one}s'}"


def tell_if_empty(store: object, namespace: str | None) -> None:
    """Say that a namespace that was named has nothing: its name may be mistyped."""
    if namespace is not None and is_empty(store, namespace):
        complain(f'kvreplay: the namespace "{namespace}" is empty')


def _width() -> int | None:
    """Return the columns of the terminal; ``None``: the output is none."""
    if not sys.stdout.isatty():
        return None
    return Console().width


def text(given: str) -> str:
    """Return a text as it can be shown: control characters as escapes, an empty one as ``''``."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in given) or "''"


def moment(ms: int | None) -> str:
    """Return a time in UTC, to the second: ``2026-11-28 09:00:00Z``."""
    found = datetime_of(ms)
    return "-" if found is None else f"{found:%Y-%m-%d %H:%M:%S}Z"


def age(ms: int) -> str:
    """Return how long something is: in its two largest units, such as ``3h 20min``."""
    seconds = max(ms, 0) // 1000
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    parts: list[str] = []
    for unit, length in units:
        count, seconds = divmod(seconds, length)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2]) or "0s"


def size(count: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    number, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if number < 1024 or unit == "TiB":
            break
        number /= 1024
    return f"{count} B" if unit == "B" else f"{number:.1f} {unit}"
