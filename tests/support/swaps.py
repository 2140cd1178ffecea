"""Whether what many clients saw of their check-and-puts can be true: each value was put once, and swapped out once.

No two puts have the same value. So the puts of a key are one chain, from no entry on: each has swapped out what the one before
it put. A client that was killed, or told that an outcome is unknown, leaves a call of which nobody knows whether it is in the chain.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import attrs

from kvreplay import KeyNotFoundError
from support.nursery import ForkedProgram
from support.programs import PROGRAMS

__all__ = ["KEYS", "Swap", "last_values", "read_swaps", "swapping", "wrongs"]

KEYS = ("a", "b", "c")

Value = str | None
"""What was put; ``None``: no entry."""


@attrs.frozen
class Swap:
    """One check-and-put as its client saw it."""

    key: str
    expected: Value
    value: Value
    end: Literal["found", "refused", "unknown", "killed"]
    said: Value = None
    """What it found, or the error's text."""

    @property
    def is_made(self) -> bool:
        return self.end == "found" and self.said == self.expected

    @property
    def may_be_made(self) -> bool:
        return self.end in ("unknown", "killed")


def read_swaps(folder: Path) -> list[Swap]:
    """Read what all clients wrote there."""
    return list(itertools.chain.from_iterable(_read(file) for file in folder.iterdir()))


def _read(file: Path) -> Iterator[Swap]:
    whole = file.read_text(encoding="utf-8").split("\n")[:-1]  # a kill may have cut the last line
    lines = [json.loads(line) for line in whole]
    for call, end in itertools.zip_longest(lines[::2], lines[1::2]):
        yield Swap(*call, *(end or ("killed",)))


def last_values(store: Any) -> dict[str, Value]:
    """Return what each key has now."""
    return {key: _last(store, key) for key in KEYS}


def _last(store: Any, key: str) -> Value:
    try:
        return bytes(store.read("swaps", "", key)).decode()
    except KeyNotFoundError:
        return None


def wrongs(swaps: Sequence[Swap], at_last: Mapping[str, Value]) -> list[str]:
    """Return what cannot be true of them.

    Args:
        at_last: each key's value when all was over.
    """
    return [
        f"{wrong} (key {key})"
        for key, last in at_last.items()
        for wrong in _wrongs([swap for swap in swaps if swap.key == key], last)
    ]


def _wrongs(swaps: Sequence[Swap], last: Value) -> Iterator[str]:
    made = [swap for swap in swaps if swap.is_made]
    perhaps = [swap for swap in swaps if swap.may_be_made]
    put = {swap.value for swap in (*made, *perhaps)}
    swapped_out = Counter(swap.expected for swap in made if swap.expected is not None)
    for value, times in swapped_out.items():
        if times > 1:
            yield f"{value} was swapped out {times} times"
    for swap in swaps:
        if swap.end == "found" and swap.said is not None and swap.said not in put:
            yield f"{swap.said} was found, and never put"
    gone = {swap.expected for swap in (*made, *perhaps)}
    for swap in made:
        if swap.value is not None and swap.value not in gone and swap.value != last:
            yield f"{swap.value} was put, and lost"
    if last is not None and last not in put:
        yield f"{last} is there, and was never put"
    if last is not None and last in swapped_out:
        yield f"{last} is there, and was swapped out"
    # An absent entry is no value of its own: as often as it was removed, and once more, it was made.
    made_anew = sum(swap.expected is None for swap in made)
    removed = sum(swap.value is None for swap in made)
    unsure = sum(None in (swap.expected, swap.value) for swap in perhaps)
    if abs(made_anew - removed - (last is not None)) > unsure:
        yield f"it was made {made_anew} times, and removed {removed} times"


@contextmanager
def swapping(url: str, folder: Path, name: str, **told: Any) -> Iterator[ForkedProgram]:
    """Run a process of ``swapping_process.py``, which has opened the store; it swaps when it is told to."""
    told = {
        "url": url,
        "folder": str(folder),
        "name": name,
        "keys": list(KEYS),
        "clients": 4,
        "calls": None,
        "face": "sync",
        "faults": False,
        "planted": "",
        **told,
    }
    with ForkedProgram(PROGRAMS / "swapping_process.py", told) as program:
        assert program.hear() == "ready"
        yield program
