"""How far a migration is: a bar on a terminal, and elsewhere a line now and then.

Both go to the standard error, so that the standard output has the result alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console

from kvreplay._migration import Progress

__all__ = ["showing"]

_EVERY: Final = 10.0  # seconds, between two lines
_STEPS: Final = {"look": "looking", "copy": "copying", "verify": "comparing"}


@contextmanager
def showing(clock: Callable[[], float] = time.monotonic) -> Iterator[Callable[[Progress], None]]:
    """Yield what shows the progress. At the end, a bar stays as it was shown last.

    Args:
        clock: seconds; when to print one more line.
    """
    console = Console(stderr=True)
    if console.is_interactive:
        with _bars(console) as show:
            yield show
    else:
        yield _lines(clock)


@contextmanager
def _bars(console: Console) -> Iterator[Callable[[Progress], None]]:
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[entries]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )
    step = ""

    def show(progress: Progress) -> None:
        nonlocal step
        if progress.step != step:
            for task in bars.tasks:
                bars.update(task.id, total=task.completed)  # it has ended
            step = progress.step
            bars.add_task(_STEPS[step], entries="")
        bars.update(
            bars.task_ids[-1],
            completed=progress.done,
            total=progress.total,
            entries=_entries(progress),
        )

    with bars:
        yield show


def _lines(clock: Callable[[], float]) -> Callable[[Progress], None]:
    step, due = "", clock()

    def show(progress: Progress) -> None:
        nonlocal step, due
        now = clock()
        if progress.step != step or now >= due:
            step, due = progress.step, now + _EVERY
            print(f"{_STEPS[step]}: {_entries(progress)}", file=sys.stderr, flush=True)

    return show


def _entries(progress: Progress) -> str:
    of = "" if progress.total is None else f" of {progress.total:,}"
    return f"{progress.done:,}{of} entries"
