"""The targets. Ratios compare figures of one run; absolute figures depend on the disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

__all__ = ["TARGETS", "Rows", "Target"]

Rows = Mapping[str, Mapping[str, Any]]
"""For each row's name, its figures by their names."""


@attrs.frozen
class Target:
    """A limit for one figure of one row: it must be at most, or at least, this."""

    what: str
    row: str
    figure: str
    at_most: float | None = None
    at_least: float | None = None

    def measured(self, rows: Rows) -> float | None:
        """Return the figure, if it was measured."""
        figure = rows.get(self.row, {}).get(self.figure)
        return None if figure is None else float(figure)

    def reached(self, figure: float) -> bool:
        """Tell whether the figure is within the limit."""
        return (self.at_most is None or figure <= self.at_most) and (
            self.at_least is None or figure >= self.at_least
        )


def _threads(engine: str, threads: int) -> tuple[str, str]:
    return f"hit threads/{engine}, {threads} threads", "x one thread's"


TARGETS: Final = (
    Target("replay hit on LMDB, x the raw floor", "hit/Replay, lmdb", "x floor", 2.0),
    Target("replay hit on SQLite, x its own floor", "hit/Replay, sqlite", "x floor", 2.0),
    *(
        Target(
            f"hit on {name} with Prometheus metrics, x the hit without events",
            f"events/{engine}, Prometheus",
            "x without",
            1.2,
        )
        for engine, name in (("lmdb", "LMDB"), ("memory", "memory"))
    ),
    Target("memory hits of 4 threads, x one thread's", *_threads("memory", 4), at_least=0.8),
    Target("LMDB hits of 64 threads, x one thread's", *_threads("lmdb", 64), at_least=0.7),
    Target("`AsyncReplay` hit, x the blocking hit", "hit/AsyncReplay, lmdb", "x Replay", 3.0),
    *(
        Target(
            f"typed hit with {library}, x the untyped hit and the library's own call",
            f"typed hit/{library}",
            "x both",
            1.5,
        )
        for library in ("attrs", "pydantic")
    ),
    *(
        Target(
            f"replay over {kind} on LMDB, over the bare application, {unit}",
            f"http replay/{kind}, lmdb",
            figure,
            limit,
        )
        for kind in ("ASGI", "WSGI")
        for unit, figure, limit in (
            ("µs", "added µs", 150),
            ("x a bare hit", "added, x a bare hit", 25),
        )
    ),
    *(
        Target(
            f"replay hit on PostgreSQL, x the same `SELECT` through {through}",
            "postgresql hit/Replay",
            figure,
            1.3,
        )
        for through, figure in (
            ("a bare connection", "x bare"),
            ("psycopg's pool", "x pooled"),
        )
    ),
    Target(
        "executions of 1,000 tasks on PostgreSQL, x bare psycopg's",
        "postgresql tasks/AsyncReplay, 1000 tasks",
        "x bare psycopg",
        at_least=0.8,
    ),
    Target(
        "threads that they start",
        "postgresql tasks/AsyncReplay, 1000 tasks",
        "threads more",
        0,
    ),
    *(
        Target(
            f"{what} on etcd, {members}, x the same request through the same HTTP client",
            f"{row}, {members}",
            "x bare",
            1.3,
        )
        for what, row in (
            ("replay hit", "etcd hit/Replay"),
            ("awaited replay hit", "etcd hit/AsyncReplay"),
            ("check-and-put", "etcd check-and-put/blocking"),
            ("awaited check-and-put", "etcd check-and-put/awaited"),
        )
        for members in ("1 member", "3 members")
    ),
    Target(
        "hit at 10^6 records, x the hit at 10^4",
        "scale/hit, 1000000 records",
        "x 10000 records",
        1.5,
    ),
    *(
        Target(
            f"page of 100 at 10^6 records on {name}, x the same at 10^3",
            f"scale/page of 100, {engine}, 1000000 records",
            "x 1000 records",
            1.5,
        )
        for engine, name in (("lmdb", "LMDB"), ("sqlite", "SQLite"))
    ),
    *(
        target
        for mode, commits in (("with a claim", 2), ("lease=None", 1), ("in a transaction", 1))
        for target in (
            Target(
                f"commits per first execution, {mode}",
                f"first execution/{mode}",
                "commits each",
                commits,
            ),
            Target(
                f"its time, x that many raw durable commits, {mode}",
                f"first execution/{mode}",
                "x raw commits",
                1.25,
            ),
        )
    ),
    *(
        Target(f"mean batch at {who}", f"durable/lmdb, {who}", "mean batch", at_least=least)
        for who, least in (("64 threads", 24), ("256 threads", 96), ("1000 tasks", 200))
    ),
    Target(
        "durable executions a second at 64 threads, x raw LMDB with a writer thread that batches",
        "durable/lmdb beside a writer thread, 64 threads",
        "x raw",
        at_least=0.6,
    ),
    Target(
        "first execution on SQLite, one thread, slow disk, x LMDB's",
        "slow disk/sqlite",
        "x lmdb",
        0.6,
    ),
    *(
        Target(
            f"longest call of 101 lazy removes on {name}{where}, x one durable write",
            f"lazy removes/{engine}{where}",
            "longest call, x a write",
            1.5,
        )
        for engine, name in (("lmdb", "LMDB"), ("sqlite", "SQLite"))
        for where in ("", ", slow disk")
    ),
    Target(
        "memory executions of 64 threads, x one thread's",
        "crowd/memory, 64 threads",
        "x one thread's",
        at_least=1.0,
    ),
    Target(
        "durable executions of 16 threads on the file system, x one thread's",
        "crowd/filesystem, 16 threads",
        "x one thread's",
        at_least=2.0,
    ),
    Target(
        "sweep of 10^5 due among 10^6 live, x the same with none live",
        "sweep/lmdb",
        "x none live",
        1.3,
    ),
    Target(
        "batches that a concurrent writer waits for",
        "sweep writer/lmdb",
        "most batches waited for",
        1,
    ),
    Target(
        "migration from LMDB to SQLite, x a raw loop that copies and verifies the same rows",
        "migrate/lmdb to sqlite",
        "x raw loop",
        2.0,
    ),
    Target("memory that it takes meanwhile, MiB", "migrate/lmdb to sqlite", "growth MiB", 50),
    *(
        target
        for engine, name in (("lmdb", "LMDB"), ("sqlite", "SQLite"))
        for target in (
            Target(
                f"scan of 10^6 records on {name}, x a raw loop that decodes the same",
                f"scan/{engine}",
                "x raw loop",
                2.0,
            ),
            Target(f"memory that it takes on {name}, MiB", f"scan/{engine}", "growth MiB", 100),
            *(
                target
                for walk in ("stat", "check")
                for target in (
                    Target(
                        f"`kvreplay {walk}` of 10^6 records on {name}, x the same raw loop",
                        f"{walk}/{engine}",
                        "x raw loop",
                        3.0,
                    ),
                    Target(
                        f"memory that it takes on {name}, MiB",
                        f"{walk}/{engine}",
                        "growth MiB",
                        100,
                    ),
                )
            ),
            Target(
                f"backup on {name} while 8 threads write, x a raw copy of the file",
                f"backup/{engine}",
                "x raw copy",
                5.0,
            ),
            Target(
                f"how much slower they write on {name} meanwhile",
                f"backup/{engine}",
                "x slower",
                1.5,
            ),
        )
    ),
    *(
        Target(
            f"ten payments of LDK nodes on {name}, a transaction a turn, x a commit a write",
            f"ldk/{engine}",
            "x a commit a write",
            1.0,
        )
        for engine, name in (("lmdb", "LMDB"), ("sqlite", "SQLite"))
    ),
    Target("memory that 10^6 executions leave, MiB", "memory/executions", "growth MiB", 20),
    Target("single-flight entries that they leave", "memory/executions", "flights left", 0),
    Target(
        "`import kvreplay` over a bare interpreter, ms",
        "import/kvreplay",
        "ms over a bare interpreter",
        60,
    ),
    Target("drivers that it imports", "import/kvreplay", "drivers imported", 0),
    Target("opening a store of 10^6 records, ms", "scale/open, 1000000 records", "ms", 50),
)
