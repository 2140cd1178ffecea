"""What the events of one process add up to. An event costs a tenth of a replayed request.

The rules:

* An event appends one number to a list. That is a single step, which no thread and no signal
  handler sees half done.
* Who finds a list long, or wants the sums, folds the lists: their numbers are added to the sums.
  One thread folds at a time. A signal handler that interrupts a fold of its own thread does not
  fold, since it would wait for itself: its numbers are left for the next fold.
* The sums are replaced in one step, and right after it the list is shortened. Python looks for no
  signal between the two, so an interrupted fold loses no event and counts none twice.
* A forked child begins anew, even if the fork ran none of Python's hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Literal, Protocol

from kvreplay.events import ANSWERS, EVENT_KINDS, ReplayEvent
from kvreplay.store import ForkSafeLock
from kvreplay.store.locks import ProcessMark, this_process

__all__ = ["BUCKETS", "OTHER_KINDS", "Count", "Family", "Sums", "Tally", "is_of_request"]

Family = Literal["requests", "events", "swept"]
"""What is counted: the ends of requests, other events, and the records that sweeps removed."""

_BATCH: Final = 1000

# A damaged record ends the request that needs it. A walk over all records finds it without one.
_DAMAGED: Final = "corrupt_record"

OTHER_KINDS: Final = (*(kind for kind in EVENT_KINDS if kind not in (*ANSWERS, "swept")), _DAMAGED)
"""The kinds of the events that end no request, without sweeps."""

# fmt: off
BUCKETS: Final = (
    5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3,
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)
# fmt: on
"""The upper bounds of a histogram of durations, in seconds: from a replay to a long handler."""


def is_of_request(event: ReplayEvent) -> bool:
    """Say whether the event tells how a request ended."""
    return event.kind in ANSWERS and (event.kind != _DAMAGED or event.key is not None)


class Sums(Protocol):
    """What the numbers of one list add up to."""

    def plus(self, numbers: list[float]) -> Sums:
        """Return the sums with these numbers too."""


class Count:
    """One kind of event in one namespace: durations in seconds; of sweeps, the removed records."""

    __slots__ = ("family", "kind", "numbers", "sums")

    def __init__(self, family: Family, kind: str, sums: Sums) -> None:
        self.family = family
        self.kind = kind
        self.numbers: list[float] = []  # not in the sums yet
        self.sums = sums

    def fold(self) -> None:
        """Add the numbers to the sums; one thread at a time."""
        if many := len(self.numbers):
            sums = self.sums.plus(self.numbers[:many])
            self.sums = sums
            del self.numbers[:many]


class _Counts:
    """All counts of one namespace."""

    __slots__ = ("all", "plain")

    def __init__(self, namespace: str, begin: Callable[[str, Family, str], Sums]) -> None:
        kinds: list[tuple[Family, str]] = [
            *(("requests", kind) for kind in ANSWERS),
            *(("events", kind) for kind in OTHER_KINDS),
            ("swept", "swept"),
        ]
        self.all = {
            (family, kind): Count(family, kind, begin(namespace, family, kind))
            for family, kind in kinds
        }
        # Where an event's kind alone says what it adds to.
        self.plain = {
            kind: count for (_, kind), count in self.all.items() if kind not in (_DAMAGED, "swept")
        }


class _Own:
    """What one process has counted."""

    __slots__ = ("counts", "mark")

    def __init__(self) -> None:
        self.mark: ProcessMark = this_process()
        self.counts: dict[str, _Counts] = {}  # by the namespace


class Tally:
    """Counts the events that it is called with, of any number of replays.

    Args:
        begin: returns the sums before the first event, for a namespace, a family and a kind.
        batch: how long a list may become before it is folded; 1: each event is folded at once.
    """

    def __init__(self, begin: Callable[[str, Family, str], Sums], batch: int = _BATCH) -> None:
        self._begin = begin
        self._batch = batch
        self._lock = ForkSafeLock()
        self._own = _Own()

    def __call__(self, event: ReplayEvent) -> None:
        """Count an event."""
        own = self._own
        if not own.mark[0]:
            own = self._begin_anew()
        try:
            count = own.counts[event.namespace].plain[event.kind]
        except KeyError:
            self._add_rare(own, event)
            return
        numbers = count.numbers
        numbers.append(event.duration)
        if len(numbers) >= self._batch:
            self._fold(count)

    def counted(self) -> Iterator[tuple[str, Count]]:
        """Yield each namespace and count, with all events in the sums."""
        own = self._own if self._own.mark[0] else self._begin_anew()
        found = [
            (namespace, count)
            for namespace, counts in list(own.counts.items())
            for count in counts.all.values()
        ]
        self._fold(*(count for _, count in found))
        yield from found

    def _add_rare(self, own: _Own, event: ReplayEvent) -> None:
        """Add the first event of a namespace, or one of a kind that is not plain."""
        namespace, kind = event.namespace, event.kind
        counts = own.counts.get(namespace)
        if counts is None:
            counts = own.counts.setdefault(namespace, _Counts(namespace, self._begin))
        number = event.duration
        if event.swept is not None:
            count, number = counts.all["swept", kind], event.swept.removed
        else:
            count = counts.all["requests" if is_of_request(event) else "events", kind]
        count.numbers.append(number)
        self._fold(count)

    def _fold(self, *counts: Count) -> None:
        if self._lock.is_mine:
            return  # this thread is folding, and was interrupted
        with self._lock.own():
            for count in counts:
                count.fold()

    def _begin_anew(self) -> _Own:
        """Return what this process counts in, which is a forked child."""
        fresh = _Own()
        with self._lock.own():
            if not self._own.mark[0]:
                self._own = fresh
            return self._own
