"""What the threads of ``history_process.py`` have written down: a history for each key, and what was in them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import attrs

from support.linearizability import Operation

__all__ = ["KEYS", "History", "Tally", "collected", "unexplained", "without_unseen"]

KEYS = ["a", "b", "c", "d"]

History = list[Operation]


def collected(folder: Path) -> dict[str, History]:
    """Read the threads' files: a line before each call, and one after each that came back."""
    histories: dict[str, History] = {key: [] for key in KEYS}
    for path in folder.iterdir():
        whole = path.read_text().split("\n")[:-1]  # a kill may have cut the last line
        lines = [json.loads(line) for line in whole]
        moment = 0
        for call, end in itertools.zip_longest(lines[::2], lines[1::2]):
            kind, key, expected, value = call
            outcome, invoked, *seen = end or ("unknown", moment)  # not before the last one's return
            operation = Operation(kind, invoked, expected=expected, value=value)
            if outcome == "returned":
                moment, found = seen
                operation = attrs.evolve(operation, returned=moment, found=found)
            if outcome != "refused":
                histories[key].append(operation)
    return histories


def without_unseen(history: History) -> History:
    """Leave out calls of unknown outcome of which nobody saw anything: whatever explains the rest explains them.

    If such a value was ever there, the next step after it was another change. So the search need not try
    at every place whether it was.
    """
    seen = {value for each in history for value in (each.found, each.expected)}
    return [
        each
        for each in history
        if each.has_ended or (each.kind != "read" and (each.value is None or each.value in seen))
    ]


def unexplained(history: History, seed: int, key: str) -> str:
    lines = [str(operation) for operation in sorted(history, key=lambda each: each.invoked)]
    return "\n".join([f"seed {seed}, key {key}: no order explains", *lines])


@attrs.define
class Tally:
    """What was recorded and checked, to be told."""

    histories: int = 0
    operations: int = 0
    changed: int = 0
    unknown: int = 0
    at_once: int = 0

    def add(self, history: History) -> None:
        self.histories += 1
        self.operations += len(history)
        self.changed += sum(
            operation.kind == "check_and_put" and operation.found == operation.expected
            for operation in history
            if operation.has_ended
        )
        self.unknown += sum(not operation.has_ended for operation in history)
        running = 0
        for _, change in sorted(
            moment
            for operation in history
            if operation.has_ended
            for moment in ((operation.invoked, 1), (operation.returned, -1))
        ):
            running += change
            self.at_once = max(self.at_once, running)

    def told(self) -> str:
        return (
            f"{self.histories} histories of {self.operations:,} operations explained,"
            f" {self.changed:,} of them check-and-puts that changed something,"
            f" {self.unknown} of unknown outcome; up to {self.at_once} at once on one key"
        )
