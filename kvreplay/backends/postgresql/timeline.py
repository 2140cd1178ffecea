"""Which history of the database is the latest: a standby that is promoted begins a new timeline.

An old primary that comes back after that is on the old timeline, and still takes changes, of which
the new one never hears. So whoever has seen the new timeline does not go back to the old one.
"""

from __future__ import annotations

from typing import Final

from kvreplay.backends.postgresql.links import AsyncLink, Link
from kvreplay.errors import StoreUnavailableError

__all__ = ["NO_TIMELINE", "TIMELINE", "Timeline", "is_standby"]

TIMELINE: Final = (
    "CASE WHEN NOT pg_is_in_recovery()"
    " THEN ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint END"
)
"""What a server is asked: the timeline that it writes; ``NULL``: it is a standby."""
NO_TIMELINE: Final = "CASE WHEN NOT pg_is_in_recovery() THEN 0 END"
"""What is asked of one that does not tell: some providers keep this to themselves."""


class Timeline:
    """The latest one on which a store's servers were seen, by this process."""

    def __init__(self) -> None:
        self.latest = 0

    def saw(self, link: Link | AsyncLink, timeline: int | None) -> None:
        """Note the timeline of a new connection's server.

        Raises:
            StoreUnavailableError: it is a standby, or on an older timeline than another one.
        """
        if timeline is None:
            raise is_standby()
        if timeline < self.latest:
            raise StoreUnavailableError(
                f"this PostgreSQL server is an old primary, on timeline {timeline}: another one was"
                f" promoted, to timeline {self.latest}. Nothing was done: stop the old one. If an"
                " old state was restored on purpose, open the store again"
            )
        self.latest = link.timeline = timeline


def is_standby() -> StoreUnavailableError:
    """Return the error for a server that only follows another one."""
    return StoreUnavailableError(
        "this PostgreSQL server is a standby: what it holds may be old, and it takes no changes;"
        " nothing was done: name the primary, or several servers and"
        " target_session_attrs=read-write"
    )
