"""Find records: one by its key or its digest, or many, a page at a time."""

from __future__ import annotations

import hashlib
import heapq
import itertools
import re
from collections.abc import Callable, Iterator, Sequence

import attrs

from kvreplay._inspection.condition import Condition, Inspection
from kvreplay._inspection.entries import Seen, namespaces_of, seen_in, seen_of
from kvreplay._protocol.keys import ReplayKey, name, scope_name
from kvreplay._protocol.record import ReplayRecord
from kvreplay.errors import InvalidValueError, KeyNotFoundError

__all__ = ["Filter", "Page", "find_digest", "find_key", "matching", "page_of"]


def find_digest(inspection: Inspection, digest: str, named: str | None) -> Iterator[Seen]:
    """Yield the records whose key has this digest: one a namespace, at most.

    It walks the whole store, or the whole namespace.
    """
    for seen in seen_in(inspection.store, named):
        if isinstance(seen.found, ReplayRecord) and seen.found.key.digest() == digest:
            yield seen


def find_key(inspection: Inspection, key: ReplayKey, named: str | None) -> Iterator[Seen]:
    """Yield what is stored for a key, in one namespace or in all of them."""
    store = inspection.store
    for namespace in [named] if named is not None else namespaces_of(store):
        if not namespace:
            continue  # no replay has the empty one
        address = namespace, scope_name(key.scope), name(key.id, key.operation)
        try:
            seen = seen_of(address, store.read_entry(*address))
        except KeyNotFoundError:
            continue
        if named is not None or seen.is_record:
            yield seen


@attrs.frozen
class Filter:
    """Which records are asked for; ``None``: all. Times are milliseconds since the epoch.

    Attributes:
        since: those whose run began then or later.
        before: those whose run began before.
    """

    conditions: frozenset[Condition] | None = None
    scope: str | None = None
    id: str | None = None
    since: int | None = None
    before: int | None = None

    def accepts(self, seen: Seen, inspection: Inspection) -> bool:
        """Say whether an entry is asked for. What is no record has no scope, and no time."""
        record = seen.found
        if isinstance(record, ReplayRecord):
            if self.scope is not None and record.key.scope != self.scope:
                return False
            if self.id is not None and record.key.id != self.id:
                return False
            if self.since is not None and record.created_at < self.since:
                return False
            if self.before is not None and record.created_at >= self.before:
                return False
        elif (self.scope, self.id, self.since, self.before) != (None, None, None, None):
            return False
        return self.conditions is None or inspection.condition(seen) in self.conditions


def matching(
    inspection: Inspection, named: str | None, asked: Filter, *, is_replay: Callable[[str], bool]
) -> Iterator[Seen]:
    """Yield each entry of the replay namespaces that is asked for, in no promised order.

    Args:
        is_replay: whether a namespace is one, of whose entries what is no record is told too.
    """
    for seen in seen_in(inspection.store, named):
        if (seen.is_record or is_replay(seen.address[0])) and asked.accepts(seen, inspection):
            yield seen


@attrs.frozen
class Page:
    """Some entries, those that were created last first.

    Attributes:
        next: a token for the page after it; ``None``: it is the last.
    """

    entries: Sequence[Seen]
    next: str | None


def page_of(found: Iterator[Seen], limit: int, after: str | None = None) -> Page:
    """Return the entries that follow a token, the newest first; an entry that changes may move.

    It looks at all that is found, and keeps no more of it than a page.

    Raises:
        InvalidValueError: the token is none.
    """
    if after is not None:
        begin = _place_in(after)
        found = itertools.filterfalse(lambda seen: _place(seen) <= begin, found)
    entries = heapq.nsmallest(limit + 1, found, key=_place)
    more = len(entries) > limit
    return Page(entries[:limit], _token(entries[limit - 1]) if more else None)


_Place = tuple[int, str]
_is_token = re.compile(r"([0-9]{1,19})-([0-9a-f]{16})", re.ASCII).fullmatch


def _place(seen: Seen) -> _Place:
    record = seen.found
    created = record.created_at if isinstance(record, ReplayRecord) else 0
    return -created, hashlib.sha256("/".join(seen.address).encode()).hexdigest()[:16]


def _token(seen: Seen) -> str:
    created, own = _place(seen)
    return f"{-created}-{own}"


def _place_in(token: str) -> _Place:
    found = _is_token(token)
    if found is None:
        raise InvalidValueError(
            "the page's token is none of ours; nothing was listed: give what the page before it"
            " says"
        )
    return -int(found[1]), found[2]
