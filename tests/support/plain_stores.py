"""What a node may already have: stores that know nothing of kvreplay."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["PlainStore", "WalkableStore"]


class PlainStore:
    """LDK's four calls over a dictionary, and an error of its own for an absent entry."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str, str], bytes] = {}

    def read(self, primary_namespace: str, secondary_namespace: str, key: str) -> bytes:
        return self.entries[primary_namespace, secondary_namespace, key]

    def write(
        self, primary_namespace: str, secondary_namespace: str, key: str, value: bytes
    ) -> None:
        self.entries[primary_namespace, secondary_namespace, key] = value

    def remove(
        self, primary_namespace: str, secondary_namespace: str, key: str, lazy: bool = False
    ) -> None:
        self.entries.pop((primary_namespace, secondary_namespace, key), None)

    def list(self, primary_namespace: str, secondary_namespace: str) -> list[str]:
        namespace = (primary_namespace, secondary_namespace)
        return [address[2] for address in list(self.entries) if address[:2] == namespace]


class WalkableStore(PlainStore):
    """One that can be walked too, in the order of its writes."""

    def list_all_keys(self) -> Iterator[tuple[str, str, str]]:
        yield from list(self.entries)
