"""Closing, written once: the ``with`` block of a store, and its refusal once it is closed."""

from __future__ import annotations

from typing import Self

from kvreplay.errors import StoreError

__all__ = ["Closing", "closed_error"]


class Closing:
    """A store that is open until its :meth:`close`, or the end of its ``with`` block."""

    _closed = False

    def close(self) -> None:
        """Refuse every further call."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise closed_error()


def closed_error() -> StoreError:
    """Return what a closed store answers."""
    return StoreError("this store is closed; nothing was done")
