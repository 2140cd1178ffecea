"""The store's calls as generators: what is asked of the server, and what follows from its answers.

They do no I/O. ``session.py`` answers their statements with blocking calls, ``aio_session.py`` with
awaits, so that a decision is written once. A statement that fails is *thrown* its StoreError.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Final, TypeVar

from psycopg.types.numeric import Int8

from kvreplay.backends.postgresql.statements import Asked, Statements
from kvreplay.errors import InvalidValueError, KeyNotFoundError, OutcomeUnknownError, StoreError
from kvreplay.store import (
    MAX_EXPIRES_AT,
    Entry,
    Page,
    PageWithValues,
    SweepResult,
    check_change,
    check_name,
    check_namespace,
    check_page,
    check_sweep,
    check_value,
    page_token,
    place_of,
)

__all__ = ["Operation", "Operations", "absent", "parameters"]

T = TypeVar("T")

Rows = Sequence[tuple[Any, ...]]
Operation = Generator[Asked, Rows, T]

_SWEEP_BATCH: Final = 1000  # due entries that a sweep visits in one transaction
_MAX_VALUE: Final = 2**30 - 2**20  # bytes: PostgreSQL's limit for a field, less what is beside it
_AFTER_ALL: Final = (MAX_EXPIRES_AT, "")  # the place before the first page


def absent() -> KeyNotFoundError:
    """Return the error for an entry that is not there."""
    return KeyNotFoundError("no entry under that name")


def parameters(primary: str, secondary: str, key: str) -> dict[str, Any]:
    """Check an address, and return it as parameters."""
    check_name(primary, secondary, key)
    return {"p": primary, "s": secondary, "k": key}


class Operations:
    """The calls of a store, or of a transaction, on one set of statements."""

    def __init__(self, statements: Statements) -> None:
        self.statements = statements

    def read(self, primary: str, secondary: str, key: str) -> Operation[bytes]:
        """Return the value."""
        rows = yield self.statements.read, parameters(primary, secondary, key)
        if not rows:
            raise absent()
        return _bytes_of(rows[0][0])

    def read_entry(self, primary: str, secondary: str, key: str) -> Operation[Entry]:
        """Return value and expiry."""
        rows = yield self.statements.read_entry, parameters(primary, secondary, key)
        if not rows:
            raise absent()
        value, expires_at = rows[0]
        return Entry(_bytes_of(value), expires_at)

    def write(self, primary: str, secondary: str, key: str, value: bytes) -> Operation[None]:
        """Create or replace the entry, which has no expiry."""
        address = parameters(primary, secondary, key)
        check_value(value)
        _check_size(value)
        rows = yield self.statements.write, {**address, "value": value, "expires_at": None}
        if not rows:
            raise _suppressed()

    def remove(self, primary: str, secondary: str, key: str, lazy: bool) -> Operation[None]:
        """Remove the entry; ``lazy`` does not wait until that is durable."""
        asked = parameters(primary, secondary, key)
        if lazy:
            asked["commit"] = "off"
        yield self.statements.remove, asked

    def list(self, primary: str, secondary: str) -> Operation[list[str]]:
        """Return the keys of a namespace."""
        check_namespace(primary, secondary)
        rows = yield self.statements.keys, {"p": primary, "s": secondary}
        return [key for (key,) in rows]

    def some_keys(self, last: tuple[str, str, str]) -> Operation[Sequence[tuple[str, str, str]]]:
        """Return the next addresses of a walk; fewer than ``WALK``: it is over."""
        rows = yield self.statements.all_keys, dict(zip("psk", last, strict=True))
        return [(primary, secondary, key) for primary, secondary, key in rows]

    def some_entries(
        self, last: tuple[str, str, str]
    ) -> Operation[Sequence[tuple[tuple[str, str, str], Entry]]]:
        """Return the next entries of a scan, with their addresses; none: it is over."""
        rows = yield self.statements.scan, dict(zip("psk", last, strict=True))
        return [(row[:3], Entry(_bytes_of(row[3]), row[4])) for row in rows]

    def check_and_put(
        self,
        primary: str,
        secondary: str,
        key: str,
        expected: bytes | None,
        value: bytes | None,
        expires_at: int | None,
    ) -> Operation[bytes | None]:
        """Compare and put; return what was found."""
        address = parameters(primary, secondary, key)
        check_change(expected, value, expires_at)
        _check_size(value)
        statements = self.statements
        put = {"value": value, "expires_at": None if expires_at is None else Int8(expires_at)}
        rows: Rows
        if expected is None and value is not None:
            rows = yield statements.put_new, {**address, **put}
            if not rows:
                raise _suppressed()
            found, is_new = rows[0][:2]
            found = _bytes_of(
                found
            )  # even if it is our own: a caller's driver may show another type
            return None if is_new else found
        while expected is not None:
            changed = {**address, "expected": expected}
            if value is None:
                rows = yield statements.drop, changed
            else:
                rows = yield statements.swap, {**changed, **put}
            found, is_changed = rows[0][:2]
            seen = None if found is None else _bytes_of(found)
            if seen == expected and not is_changed:
                raise _suppressed()
            if seen is not None:
                return seen
            rows = yield statements.read, address
            if not rows or rows[0][0] != expected:
                break  # else it was made again meanwhile: see statements.py
        else:
            rows = yield statements.read, address
        return _bytes_of(rows[0][0]) if rows else None

    def page(self, primary: str, secondary: str, token: str | None, limit: int) -> Operation[Page]:
        """Return a page of keys."""
        rows, after = yield from self._page(False, primary, secondary, token, limit)
        return Page([row[0] for row in rows], after)

    def page_with_values(
        self, primary: str, secondary: str, token: str | None, limit: int
    ) -> Operation[PageWithValues]:
        """Return a page of keys and values."""
        rows, after = yield from self._page(True, primary, secondary, token, limit)
        return PageWithValues([(row[0], row[2]) for row in rows], after)

    def _page(
        self, valued: bool, primary: str, secondary: str, token: str | None, limit: int
    ) -> Operation[tuple[Rows, str | None]]:
        check_page(primary, secondary, limit)
        created, key = place_of(primary, secondary, token) or _AFTER_ALL
        statement = self.statements.page_with_values if valued else self.statements.page
        rows = yield (
            statement,
            {
                "p": primary,
                "s": secondary,
                "k": key,
                "created": Int8(created),
                "limit": Int8(limit + 1),
            },
        )
        if len(rows) <= limit:
            return rows, None
        key, created = rows[limit - 1][:2]
        return rows[:limit], page_token(primary, secondary, (created, key))

    def sweep(self, primary: str, now: int, limit: int) -> Operation[SweepResult]:
        """Remove due entries, but those that somebody is changing."""
        check_sweep(primary, now, limit)
        visited = removed = 0
        more, until = True, max(-1, min(now, MAX_EXPIRES_AT))
        while more and visited < limit:
            batch = min(limit - visited, _SWEEP_BATCH)
            asked = {"p": primary, "now": Int8(until), "limit": Int8(batch)}
            try:
                rows = yield self.statements.sweep, asked
            except StoreError as error:
                if not visited:
                    raise
                raise OutcomeUnknownError(
                    f"a sweep failed after it had removed {removed} entries: nothing else was"
                    " changed; sweep again"
                ) from error
            due, gone = rows[0][:2]
            visited, removed, more = visited + due, removed + gone, due == batch
        if more:
            try:
                rows = yield self.statements.is_due, {"p": primary, "now": Int8(until)}
                more = bool(rows)
            except StoreError:  # something was removed, and more may be due
                pass
        return SweepResult(visited, removed, more)


def _bytes_of(value: object) -> bytes:
    """Return a value; a caller's own connection may have another loader for ``bytea``."""
    if type(value) is not bytes:
        raise StoreError(
            f"the connection shows bytea as {type(value).__name__}: a loader of your own is"
            " registered for it; nothing was changed: give a connection without it"
        )
    return value


def _suppressed() -> StoreError:
    return StoreError(
        "PostgreSQL did not make this change: a trigger or a rule of the table keeps it from that;"
        " nothing was changed: remove it"
    )


def _check_size(value: bytes | None) -> None:
    if value is not None and len(value) > _MAX_VALUE:
        raise InvalidValueError(
            f"a value of {len(value)} bytes is more than PostgreSQL can hold ({_MAX_VALUE});"
            " nothing was written"
        )
