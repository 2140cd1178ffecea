"""What somebody reads of an error."""

from __future__ import annotations

__all__ = ["told"]


def told(error: BaseException | None) -> str:
    """All that a log of this exception and of those behind it would say."""
    if error is None:
        return ""
    return f"{error!r} {error} {told(error.__cause__)}{told(error.__context__)}"
