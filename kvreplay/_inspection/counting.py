"""What is in a store: counted in one walk, in memory that does not grow with the store."""

from __future__ import annotations

import collections
from collections.abc import Mapping

import attrs

from kvreplay._inspection.condition import Condition, Inspection
from kvreplay._inspection.entries import Seen, seen_in
from kvreplay._protocol.record import ReplayRecord

__all__ = ["Counts", "Namespace", "count"]

_SCOPES = 10_000  # that are counted one by one
_NAMESPACES = 10_000  # likewise


@attrs.define
class Namespace:
    """What one primary namespace has.

    Attributes:
        bytes: of the values.
        is_replay: whether one of its entries is a record, or it was named.
        conditions: how many keys are in each.
        due: how many entries a sweep would remove now.
        oldest: when the oldest run began whose record is here (ms).
        oldest_in_doubt: the record of the run that is in doubt for the longest time.
        scopes: how many records each scope has. Only the first 10,000 scopes are counted.
        more_scopes: whether there are others.
    """

    entries: int = 0
    bytes: int = 0
    is_replay: bool = False
    conditions: collections.Counter[Condition] = attrs.field(factory=collections.Counter)
    due: int = 0
    oldest: int | None = None
    oldest_in_doubt: ReplayRecord | None = None
    scopes: collections.Counter[str] = attrs.field(factory=collections.Counter)
    more_scopes: bool = False

    def add(self, seen: Seen, inspection: Inspection) -> None:
        """Count one entry."""
        self.entries += 1
        self.bytes += len(seen.entry.value)
        expires_at = seen.entry.expires_at
        self.due += expires_at is not None and expires_at <= inspection.now
        self.is_replay = self.is_replay or seen.is_record
        condition = inspection.condition(seen)
        self.conditions[condition] += 1
        record = seen.found
        if not isinstance(record, ReplayRecord):
            return
        scope, began = record.key.scope, record.created_at
        if scope in self.scopes or len(self.scopes) < _SCOPES:
            self.scopes[scope] += 1
        else:
            self.more_scopes = True
        if self.oldest is None or began < self.oldest:
            self.oldest = began
        if condition is Condition.IN_DOUBT and (
            self.oldest_in_doubt is None or began < self.oldest_in_doubt.created_at
        ):
            self.oldest_in_doubt = record


@attrs.frozen
class Counts:
    """What a store has.

    Attributes:
        replay: its replay namespaces, by name.
        others: the entries and the bytes of every other namespace. Nothing is told of what is in
            them.
        more: how many entries are in further namespaces; only the first 10,000 are told apart.
    """

    replay: Mapping[str, Namespace]
    others: Mapping[str, Namespace]
    more: int = 0


def count(inspection: Inspection, named: str | None = None) -> Counts:
    """Walk a store, or one namespace, and count."""
    found: dict[str, Namespace] = {}
    more = 0
    if named is not None:
        found[named] = Namespace(is_replay=True)
    for seen in seen_in(inspection.store, named):
        primary = seen.address[0]
        if primary not in found and len(found) < _NAMESPACES:
            found[primary] = Namespace()
        if primary in found:
            found[primary].add(seen, inspection)
        else:
            more += 1
    return Counts(
        {name: each for name, each in sorted(found.items()) if each.is_replay},
        {name: each for name, each in sorted(found.items()) if not each.is_replay},
        more,
    )
