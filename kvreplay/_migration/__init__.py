"""``migrate``: all entries of one store into another, of any two engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from kvreplay._migration import mark
from kvreplay._migration.claims import IN_PROGRESS, Claims
from kvreplay._migration.copying import Copying
from kvreplay._migration.sides import check_two, destination_of, is_ordered, source_of
from kvreplay._migration.verifying import verify
from kvreplay.errors import ConfigError, KeyNotFoundError
from kvreplay.store import MigratableKVStore

__all__ = ["Migrated", "Progress", "migrate"]

_STEP: Final = 1000  # entries between two calls of on_progress


@attrs.frozen
class Progress:
    """How far a migration is: a step, and how many of the source's entries it has done.

    ``total`` is how many there were at the first look, which has none itself.
    """

    step: Literal["look", "copy", "verify"]
    done: int
    total: int | None


@attrs.frozen
class Migrated:
    """What a migration has done.

    Attributes:
        entries: how many were compared, and are equal.
        copied: how many of them this call has put.
        removed: how many it has removed, which an earlier, unfinished call had put.
        claims: how many requests in progress there were at the first look.
        ordered: whether the order of creation was kept, since both sides know one.
    """

    entries: int
    copied: int
    removed: int
    claims: int
    ordered: bool


if TYPE_CHECKING:
    Where = str | Mapping[str, object] | MigratableKVStore


def migrate(
    source: Where,
    destination: Where,
    *,
    into_used: bool = False,
    with_claims: bool = False,
    batch: int = 5_000,
    on_progress: Callable[[Progress], object] | None = None,
) -> Migrated:
    """Copy every entry with its expiry, read all of it again, and compare.

    The order of creation is kept where both sides are a :class:`~kvreplay.PaginatedKVStore`. The
    source is opened with ``create=False``, and no entry of it is changed. LDK's own files are read
    as they are: ``filesystem:PATH?layout=ldk-v1``, a folder in LDK's layout v2, or ldk-node's
    ``ldk_node_data.sqlite``, whose node must not run. Its table in PostgreSQL is a source or a
    destination: ``postgresql://node@host/ldk_db?table=ldk_data``. No node can run beside that.

    **After a crash**: the destination has a mark, the entry ``unfinished`` of the namespace
    ``kvreplay-migration``, from before the first entry until the second pass has ended. Call again
    with the same source, and it goes on: entries that are equal are not written again. Use the
    destination for nothing else before that: what differs from the source is replaced, and what is
    not in the source is removed.

    **While others write to the source**: each entry is copied as it was at one moment. The second
    pass finds what was changed since, and raises :class:`~kvreplay.NotEqualError`. So a first call
    may copy most of it while the node runs. Stop the node, and call again.

    **A claim** is copied only ``with_claims``. Its owner cannot be looked up from the destination,
    so there its lease decides: after it the key is in doubt. A run that goes on at the source
    stores its answer there, and not in the destination.

    **Into a used destination**, ``into_used=True``: nothing that is there is replaced or removed,
    and the copied entries are younger than what was there. Only their values and their expiry are
    compared, not the order.

    Args:
        source: a URL or a mapping, as for :func:`~kvreplay.open_store`, or an open store.
        destination: the same; made if it is missing.
        into_used: copy into a store that is not empty.
        with_claims: copy requests in progress too.
        batch: how many entries are put at once, at most; and at most 8 MiB.
        on_progress: called after each batch, and for about each thousand entries that are compared.

    Raises:
        ConfigError: a URL, an option or a store is not fit for this; nothing was copied.
        DestinationNotEmptyError: there are entries of its own, or one that differs.
        ClaimsInProgressError: requests are in progress. Nothing was copied, unless they have begun
            during the call.
        NotEqualError: the second pass found differences; call again.
        StoreError: a store failed; call again, and it goes on.
    """
    if type(batch) is not int or batch < 1:
        raise ConfigError("batch must be an int of at least 1; nothing was copied")
    with source_of(source) as one:
        mark.check_source(one.store)
        told = _Told(on_progress)
        claims = _look(one.store, told)
        if claims.count and not with_claims:
            raise claims.error("nothing was copied")
        with destination_of(destination) as other:
            check_two(one, other)
            ordered = is_ordered(one.store) and is_ordered(other.store)
            resumed, used = mark.begin(other.store, one.name, into_used=into_used)
            told.begin("copy")
            copying = Copying(
                one.store,
                other.store,
                resumed=resumed,
                used=used,
                with_claims=with_claims,
                batch=batch,
                done=told.add,
            )
            copying.run(ordered=ordered)
            told.begin("verify")
            entries = verify(one.store, other.store, ordered=ordered, used=used, done=told.add)
            mark.end(other.store)
    return Migrated(entries, copying.copied, copying.removed, claims.count, ordered)


class _Told:
    """Tells the caller how far it is."""

    def __init__(self, on_progress: Callable[[Progress], object] | None) -> None:
        self._on_progress = on_progress
        self._total: int | None = None
        self._progress = Progress("look", 0, None)

    def begin(self, step: Literal["copy", "verify"]) -> None:
        if self._total is None:
            self._total = self._progress.done
        self._progress = Progress(step, 0, self._total)
        self.add(0)

    def add(self, entries: int) -> None:
        self._progress = attrs.evolve(self._progress, done=self._progress.done + entries)
        if self._on_progress is not None:
            self._on_progress(self._progress)


def _look(source: Any, told: _Told) -> Claims:
    """Count the source's entries, and find its claims."""
    claims, looked, read = Claims(source), 0, source.read
    told.add(0)
    for address in source.list_all_keys():
        looked += 1
        try:
            value = read(*address)
        except KeyNotFoundError:
            continue  # removed since it was listed
        if value.startswith(IN_PROGRESS):
            claims.look_at(address, value)
        if not looked % _STEP:
            told.add(_STEP)
    told.add(looked % _STEP)
    return claims
