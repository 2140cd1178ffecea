"""Which keys of etcd a store has, below its prefix; ``docs/format.md`` describes them.

* ``meta`` says which store this is.
* ``e/PRIMARY/SECONDARY/KEY`` is an entry's value.
* ``x/PRIMARY/SECONDARY/KEY`` is its expiry, if it has one.
* ``t/PRIMARY/EXPIRY/SECONDARY/KEY`` lets a sweep find it. It stays when the expiry moves, or the
  entry goes: so a sweep looks at ``x/…`` before it believes one of these.

A name has no slash. So the names of a key are found again, and keys are in the order of their
names, those of ``t/…`` in the order of their expiry.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvreplay.store import MAX_EXPIRES_AT
from kvreplay.store.names import are_names, is_name

__all__ = ["Address", "Keys", "Range", "after", "expiry_of", "expiry_text"]

Address = tuple[str, str, str]
"""Primary namespace, secondary namespace, key."""

Range = tuple[bytes, bytes]
"""The first key, and the one that is behind the last."""

_DIGITS = len(str(MAX_EXPIRES_AT))


def after(key: bytes) -> bytes:
    """Return the least key behind this one."""
    return key + b"\0"


def expiry_text(expires_at: int) -> bytes:
    """Return an expiry as it is stored."""
    return b"%d" % expires_at


def expiry_of(text: bytes) -> int | None:
    """Return the expiry in a stored text; ``None``: it is none."""
    if not (text.isascii() and text.isdigit()) or len(text) > _DIGITS:
        return None
    return int(text)


class Keys:
    """The keys of one store.

    Args:
        prefix: what they all begin with; its last character is a slash.
    """

    def __init__(self, prefix: bytes) -> None:
        self.all: Range = below(prefix)
        self.meta = prefix + b"meta"
        self.entries = prefix + b"e/"
        self.expiries = prefix + b"x/"
        self._due = prefix + b"t/"
        self.kinds = tuple(map(below, (self.entries, self.expiries, self._due)))

    def entry(self, primary: str, secondary: str, key: str) -> bytes:
        """Return the key of an entry."""
        return self.entries + f"{primary}/{secondary}/{key}".encode()

    def expiry(self, primary: str, secondary: str, key: str) -> bytes:
        """Return the key of an entry's expiry."""
        return self.expiries + f"{primary}/{secondary}/{key}".encode()

    def due(self, primary: str, expires_at: int, secondary: str, key: str) -> bytes:
        """Return the key by which a sweep finds an entry."""
        return self._due + f"{primary}/{expires_at:0{_DIGITS}}/{secondary}/{key}".encode()

    def namespace(self, primary: str, secondary: str) -> Range:
        """Return where the entries of a namespace are."""
        return below(self.entries + f"{primary}/{secondary}/".encode())

    def walk(self, primary: str | None) -> Range:
        """Return where the entries of a primary namespace are; ``None``: all entries."""
        if primary is None:
            return self.entries, self.entries + b"\xff"
        return below(self.entries + f"{primary}/".encode())

    def due_until(self, primary: str, now: int) -> Range:
        """Return where those are found that are due at a time; ``now`` is not negative."""
        start = self._due + f"{primary}/".encode()
        return start, start + f"{min(now, MAX_EXPIRES_AT) + 1:0{_DIGITS}}".encode()

    def expiry_beside(self, entry: bytes) -> bytes:
        """Return the key of the expiry that belongs to the key of an entry."""
        return self.expiries + entry[len(self.entries) :]

    def address(self, key: bytes) -> Address | None:
        """Return the address in the key of an entry or an expiry; ``None``: it has none."""
        parts = _parts(key[len(self.entries) :])
        return (parts[0], parts[1], parts[2]) if len(parts) == 3 and _legal(parts) else None

    def found_due(self, key: bytes) -> tuple[int, Address] | None:
        """Return the expiry and the address in a key that a sweep found; ``None``: none."""
        primary, expires_at, *rest = (*_parts(key[len(self._due) :]), "", "")[:4]
        address = (primary, *rest)
        at = expiry_of(expires_at.encode())
        if at is None or not _legal(address):
            return None
        return at, (address[0], address[1], address[2])


def below(prefix: bytes) -> Range:
    """Return the range of the keys that begin with a prefix, which ends with a slash."""
    return prefix, prefix[:-1] + b"0"  # which follows the slash


def _parts(key: bytes) -> list[str]:
    return key.decode("ascii", "replace").split("/")


def _legal(parts: Sequence[str]) -> bool:
    primary, secondary, key = parts
    return is_name(key) is not None and are_names([each for each in (primary, secondary) if each])
