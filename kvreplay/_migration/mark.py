"""The mark of a migration that has not ended: an entry in the destination.

It is written before anything else, and removed after the second pass. So a destination that is not
empty and has the mark may be completed, by a migration from the same source.
"""

from __future__ import annotations

import json
from typing import Any, Final

from kvreplay.errors import ConfigError, DestinationNotEmptyError, KeyNotFoundError

__all__ = ["MARK", "begin", "check_source", "end"]

MARK: Final = ("kvreplay-migration", "", "unfinished")


def begin(destination: Any, source: str, *, into_used: bool) -> tuple[bool, bool]:
    """Write the mark, or find it. Say whether it was there, and whether the store was in use.

    Raises:
        DestinationNotEmptyError: there are entries and no mark, and ``into_used`` is false.
        ConfigError: the mark is that of a migration from another source.
    """
    try:
        marked = json.loads(destination.read(*MARK))
    except KeyNotFoundError:
        is_used = next(iter(destination.list_all_keys()), None) is not None
        if is_used and not into_used:
            raise DestinationNotEmptyError(
                "the destination is not empty; nothing was copied: name a new or empty store, or"
                " say that the entries may come beside its own (into_used=True, --into-used)"
            ) from None
        destination.write(*MARK, json.dumps({"source": source, "used": is_used}).encode())
        return False, is_used
    if marked["source"] != source:
        raise ConfigError(
            "the destination is that of a migration from another source, which has not ended;"
            " nothing was copied: complete that one, or name another destination"
        )
    if marked["used"] and not into_used:
        raise DestinationNotEmptyError(
            "the destination had entries before this migration began; nothing was copied: say"
            " again that it may be used (into_used=True, --into-used)"
        )
    return True, bool(marked["used"])


def end(destination: Any) -> None:
    """Remove the mark."""
    destination.remove(*MARK)


def check_source(source: Any) -> None:
    """Refuse a source that is the destination of a migration that has not ended."""
    try:
        source.read(*MARK)
    except KeyNotFoundError:
        return
    raise ConfigError(
        "the source is the destination of another migration, which has not ended; nothing was"
        " copied: complete that one first"
    )
