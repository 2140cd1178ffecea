"""Whether one entry's history can be explained by some order of single, instant steps.

The search of Wing and Gong (*Testing and Verifying Concurrent Objects*, 1993) with Lowe's memory of
what was tried (*Testing for Linearizability*, 2017): an operation may be the next step if no other
that is still missing had returned before it was invoked; and no pair (operations done, state) is
tried twice. Entries are independent, so each has a history and a search of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import attrs

__all__ = ["Operation", "linearization"]

Value = str | None
"""What stands for an entry's bytes; ``None``: there is no entry."""


@attrs.frozen
class Operation:
    """One call on the entry, from its invocation to its return, on one clock for all callers.

    ``returned`` is infinite if nobody knows the call's end: its caller was killed in it, or was told
    that the outcome is unknown. Such a call may take effect at any later time, or never.
    """

    kind: Literal["read", "write", "remove", "check_and_put"]
    invoked: float
    returned: float = math.inf
    expected: Value = None
    value: Value = None
    found: Value = None

    @property
    def has_ended(self) -> bool:
        return self.returned != math.inf

    def step(self, state: Value) -> tuple[bool, Value]:
        """Return whether the call can have seen this state, and the state after it."""
        if self.kind == "write":
            return True, self.value
        if self.kind == "remove":
            return True, None
        can_have_seen = self.found == state or not self.has_ended
        if self.kind == "check_and_put" and state == self.expected:
            return can_have_seen, self.value
        return can_have_seen, state


def linearization(history: Sequence[Operation]) -> list[Operation] | None:
    """Return an order of single steps, from no entry on, that explains what everybody saw.

    It holds every operation that has ended, and those of the others that had an effect.
    ``None``: there is no such order.
    """
    operations = sorted(history, key=lambda operation: operation.invoked)
    ended = sum(1 << n for n, operation in enumerate(operations) if operation.has_ended)
    order: list[int] = []
    tried: set[tuple[int, Value]] = set()
    path: list[tuple[int, Value, Iterator[int]]] = [(0, None, _next_steps(operations, 0))]
    while path:
        done, state, steps = path[-1]
        if done & ended == ended:
            return [operations[n] for n in order]
        for n in steps:
            possible, after = operations[n].step(state)
            reached = (done | 1 << n, after)
            if possible and reached not in tried:
                tried.add(reached)
                order.append(n)
                path.append((*reached, _next_steps(operations, reached[0])))
                break
        else:
            path.pop()
            del order[len(path) - 1 :]
    return None


def _next_steps(operations: Sequence[Operation], done: int) -> Iterator[int]:
    """Yield what may come next: what was invoked before any other that is missing had returned."""
    first_return = math.inf
    first = (~done & (done + 1)).bit_length() - 1
    for n in range(first, len(operations)):
        if not done >> n & 1:
            if operations[n].invoked > first_return:
                return
            yield n
            first_return = min(first_return, operations[n].returned)
