"""How a store is closed, written once: its ``with`` block, and the error of later calls."""

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
    """Return the error that a closed store raises."""
    return StoreError("this store is closed; nothing was done")
