"""The tables of ``docs/benchmarks.md``, from the rows of one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from benchmarks.targets import TARGETS, Rows

__all__ = ["markdown"]

_SECTIONS: Final = {
    "hit": (
        "A replay",
        "A 0.7 KB record of 8 params, one thread. The floor is a raw py-lmdb `get` and one msgpack"
        " decoding of the same content as one map, measured in turn with each row;"
        " for SQLite a bare `SELECT` and that decoding.",
    ),
    "hit threads": (
        "Replays of many threads",
        "Beside one thread's, and how the raw floor fares with as many threads. LMDB's driver gives"
        " up the interpreter's lock at each `get`; memory does so nowhere.",
    ),
    "hit parts": (
        "Where a hit's time goes",
        "On LMDB, each part alone. The rest of a whole hit is the calls between the parts.",
    ),
    "typed hit": (
        "A typed replay",
        "On LMDB, one thread: `returns=` a class, beside a replay of the same answer as a dict and"
        " the library's own call, `cattrs.structure` or `model_validate`, of that dict.",
    ),
    "typed decoding": (
        "Decoding a typed answer",
        "The codec alone, beside the library's own call.",
    ),
    "events": (
        "A replay that is counted",
        "One thread's hit with an `on_event`, beside the same without. *An empty function*: what"
        " the event itself costs. OpenTelemetry is its SDK, with a reader and spans in memory.",
    ),
    "http replay": (
        "A replay over HTTP",
        "A request of 0.2 KB with an `Idempotency-Key`, an answer of 0.3 KB with 4 headers, one at"
        " a time; no server, so the layer is all that is measured. *Added*: over the bare"
        " application, which reads the body and answers. *A bare hit*: `AsyncReplay` or `Replay`"
        " with the same record.",
    ),
    "http parts": (
        "Where that time goes",
        "Over ASGI on LMDB, each part alone. The rest is the calls between the parts.",
    ),
    "http first": (
        "A first request over HTTP",
        "LMDB's files are in memory, so that no flush hides the rest. *A bare execute*: what"
        " the replay itself needs for the same record. Over ASGI the application gets a task of its"
        " own.",
    ),
    "http passed through": (
        "A request that the layer does not cover",
        "A `GET`, beside the bare application.",
    ),
    "http starlette": (
        "Beside Starlette",
        "A route of Starlette behind each, on LMDB in memory. A replay does not reach the router.",
    ),
    "postgresql hit": (
        "A replay from PostgreSQL",
        "One thread, a server of the same machine, its Unix socket. Beside the same `SELECT`"
        " through psycopg alone: on one connection (*bare*), and through its pool.",
    ),
    "postgresql first": (
        "A first execution on PostgreSQL",
        "Beside its three statements through one connection of psycopg.",
    ),
    "postgresql threads": (
        "How far a process goes on PostgreSQL",
        "10 connections. The server has the same two cores, so it is a part of what is measured;"
        " its files are in memory.",
    ),
    "postgresql tasks": (
        "1,000 tasks on PostgreSQL",
        "First executions by `AsyncReplay`, beside the same three statements of tasks that each"
        " take a connection of psycopg's pool. *Threads more*: than before.",
    ),
    "postgresql written": (
        "What PostgreSQL writes for a record",
        "A first execution of one thread: 0.7 KB of params and response. *After VACUUM FULL*: a"
        " record's share of the table and its indexes, when nothing dead is left.",
    ),
    "etcd hit": (
        "A replay from etcd",
        "One caller; members on this machine's loopback, their files in memory. Beside the same"
        " range request through the engine's own HTTP client, on one connection, whose answer"
        " nobody decodes (*bare*). What it waits for is etcd: its JSON gateway, and with three"
        " members a majority that confirms the leader.",
    ),
    "etcd check-and-put": (
        "A check-and-put on etcd",
        "Of a 0.7 KB record with an expiry, beside the same transaction through the same client."
        " What it waits for is etcd: the gateway, and a log entry that a majority has flushed.",
    ),
    "etcd first": (
        "A first execution on etcd",
        "Beside its three requests through the same client.",
    ),
    "etcd threads": (
        "How far a process goes on etcd",
        "10 connections. The members have the same two cores, so they are a part of what is"
        " measured.",
    ),
    "etcd tasks": (
        "1,000 tasks on etcd",
        "First executions by `AsyncReplay`, beside the same three requests of tasks that each take"
        " one of 10 connections of the bare client. *Threads more*: than before.",
    ),
    "etcd scale": (
        "With the number of records in etcd",
        "One member, its files in memory, each in turn with the smallest. For a page in the order"
        " of creation the member looks through the whole namespace.",
    ),
    "etcd quota": (
        "What a record takes of etcd's quota",
        "A first execution of one thread: 0.7 KB of params and response. etcd keeps all history"
        " until it is compacted (`--auto-compaction-retention`); its quota is 2 GiB by default.",
    ),
    "first execution": (
        "A first execution",
        "One thread on LMDB, beside the same number of raw durable commits of the same bytes: those"
        " of the entries and of the expiry index. *Without an index*: those of the entries only.",
    ),
    "durable": (
        "Durable first executions at once",
        "Raw: py-lmdb with one transaction for each write. The same threads make the same two"
        " writes; for tasks, asyncio's thread pool makes them. *Beside a writer thread*: raw is one"
        " more thread that commits all writes that wait at once. Memory is not durable; it shows"
        " the cost of the code.",
    ),
    "slow disk": (
        "A slow disk",
        "A first execution with a claim, one thread. The files are in memory, and each flush takes"
        " some milliseconds: `benchmarks/slow_disk.c` waits in `fsync`, in `fdatasync`, and in each"
        " write to a file opened with `O_DSYNC`, as LMDB's meta page has it.",
    ),
    "lazy removes": (
        "A wave of lazy removals",
        "101 of them, as LDK's persister sends them, beside the durable write before and after the"
        " wave, in one run. On LMDB and SQLite the next write's commit makes them. On the file"
        " system each removes its file, without a flush.",
    ),
    "crowd": (
        "A crowd",
        "First executions of many threads beside one thread's. On the file system they share the"
        " flushes of a folder.",
    ),
    "sweep": (
        "A sweep",
        "Due records scattered among live ones, in batches of 1,000.",
    ),
    "sweep writer": (
        "A writer during that sweep",
        "One thread writes durably while another sweeps.",
    ),
    "scale": (
        "With the number of records",
        "LMDB, random keys; and pages of 100 keys, one after the other.",
    ),
    "migrate": (
        "A migration",
        "An LMDB store into a new SQLite store, beside a raw loop with py-lmdb and sqlite3 that"
        " copies the same rows in as large transactions, and reads each of them again by its name."
        " *Verified in order*: the loop walks both sides in the order of their keys instead. No"
        " store offers that with the expiry.",
    ),
    "scan": (
        "A scan",
        "Every record with its expiry, decoded, a page at a time; beside a raw cursor of py-lmdb,"
        " or one `SELECT` of sqlite3 with the join that tells the expiry, which decodes the same.",
    ),
    "stat": (
        "What `kvreplay stat` counts",
        "Every record, by namespace, state and scope; beside the same raw loop.",
    ),
    "check": (
        "What `kvreplay check` looks at",
        "Every record's checksum, key and state, and the index of expiry both ways; beside the same"
        " raw loop.",
    ),
    "backup": (
        "A backup",
        "While 8 threads write, beside a raw copy of the file and its flush, while nobody does. On"
        " LMDB it rests after each part, so that those who write have the disk.",
    ),
    "ldk": (
        "Payments of two LDK nodes",
        "Ten payments on one channel, in both directions. Two real LDK 0.1.2 nodes in a process"
        " keep all they have in stores of ours: with a transaction for each turn of a node, or with"
        " a commit for each write. LDK itself, as WebAssembly, takes most of the time.",
    ),
    "memory": (
        "Memory",
        "Growth of a process's anonymous memory over first executions on LMDB, in shared memory.",
    ),
    "import": ("Import", "Whole processes, with the import and without."),
    "peers": (
        "Peers",
        "The same record, one caller, each peer in turn with kvreplay on LMDB (which survives a"
        " power cut). *x kvreplay* is the peer's time divided by ours.",
    ),
}

# If one of these figures is less than this, we lose the row.
_LOSING: Final = {
    "x raw": 1.0,
    "x bare psycopg": 1.0,
    "x bare client": 1.0,
    "hit x kvreplay": 1.0,
    "first x kvreplay": 1.0,
}


def markdown(machine: Mapping[str, Any], rows: Rows) -> str:
    """Return the whole page."""
    parts = [
        "# Benchmarks",
        "Made by `python -m benchmarks`. Medians, and ratios between figures of one run; what is"
        " compared was measured in turn. **Bold**: a missed target, or a row that we lose. *Bound"
        " by*: how the process spends the time of a row. *Interpreter*: its own code. *Kernel*:"
        " system calls. *Flush*, or *waiting* where nothing is flushed: neither of them.",
        _machine(machine),
        "## Targets",
        _targets(rows),
    ]
    for section, (title, words) in _SECTIONS.items():
        own = {
            name.partition("/")[2]: figures
            for name, figures in rows.items()
            if name.partition("/")[0] == section
        }
        if own:
            parts += [f"## {title}", words, _figures(own)]
        else:
            parts += [f"## {title}", "Not measured in this run."]
    return "\n\n".join(parts) + "\n"


def _machine(machine: Mapping[str, Any]) -> str:
    return table(["machine", ""], ([name, shown(value)] for name, value in machine.items()))


def _targets(rows: Rows) -> str:
    lines = []
    for target in TARGETS:
        figure = target.measured(rows)
        limit = f"≤ {target.at_most:g}" if target.at_least is None else f"≥ {target.at_least:g}"
        if figure is None:
            lines.append([target.what, limit, "-", "not measured"])
        elif target.reached(figure):
            lines.append([target.what, limit, shown(figure), "reached"])
        else:
            lines.append([target.what, limit, f"**{shown(figure)}**", "**missed**"])
    return table(["what", "target", "measured", ""], lines)


def _figures(rows: Rows) -> str:
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    lines = []
    for row, figures in rows.items():
        cells = [row]
        for name in names:
            cell = shown(figures.get(name))
            loses = name in _LOSING and figures.get(name, 1.0) < _LOSING[name]
            cells.append(f"**{cell}**" if loses else cell)
        lines.append(cells)
    return table(["", *names], lines)


def table(head: list[str], lines: Iterable[list[str]]) -> str:
    """Return a Markdown table."""
    rule = ["---"] + ["---:" if name else "---" for name in head[1:]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *lines])


def shown(value: Any) -> str:
    """Return a figure for a reader: three significant digits, or all digits before the point."""
    if value is None:
        return "-"
    if isinstance(value, float):
        if value >= 100:
            return f"{value:,.0f}"
        return f"{value:.3g}" if value < 0.01 else f"{value:.{1 if value >= 10 else 2}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
