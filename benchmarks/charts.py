"""The charts in ``docs/``: SVG with real text and no background, so that they fit any page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

from benchmarks.targets import Rows

mpl.use("svg")

from matplotlib import pyplot as plt

__all__ = ["draw"]

# Okabe and Ito's colours: colour-blind people can tell them apart. These shades are easy to see on
# white and on black.
OURS: Final = "#0080c8"
OURS_TOO: Final = "#009e73"
RIVAL: Final = "#d55e00"
TEXT: Final = "#777c82"
FAINT: Final = "#777c8255"

TASKS: Final = 1000

_STYLE: Final = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kvreplay",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": TEXT,
    "axes.edgecolor": TEXT,
    "axes.labelcolor": TEXT,
    "axes.titlesize": 12,
    "axes.titlecolor": TEXT,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "lines.linewidth": 2,
}


def draw(rows: Rows, folder: Path) -> list[Path]:
    """Write the charts whose rows were measured; return their paths."""
    charts = {
        "bench-hit.svg": (_hit, "hit/Replay, "),
        "bench-durable.svg": (_durable, "durable/lmdb, "),
        "bench-scale.svg": (_scale, "scale/hit, "),
    }
    paths = []
    for name, (chart, needs) in charts.items():
        if not any(row.startswith(needs) for row in rows):
            continue
        path = folder / name
        with mpl.rc_context(_STYLE), _figure(path):
            chart(rows)
        paths.append(path)
    return paths


@contextmanager
def _figure(path: Path) -> Iterator[None]:
    yield
    plt.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
    plt.close()


def _hit(rows: Rows) -> None:
    bars: list[tuple[str, float, str]] = [
        (name.partition("/")[2], figures["µs"], OURS)
        for name, figures in rows.items()
        if name.startswith("hit/")
    ]
    bars += sorted(
        (
            (name.partition("/")[2], figures["hit µs"], RIVAL)
            for name, figures in rows.items()
            if name.startswith("peers/")
        ),
        key=lambda bar: bar[1],
    )
    bars.reverse()
    floor = rows["hit/Replay, lmdb"]["floor µs"]
    _, axes = plt.subplots(figsize=(8, 0.6 + 0.34 * len(bars)))
    axes.barh([bar[0] for bar in bars], [bar[1] for bar in bars], color=[bar[2] for bar in bars])
    for index, (_, value, _) in enumerate(bars):
        label = f"{value:.1f}" if value < 100 else f"{value:,.0f}"
        axes.text(value * 1.06, index, label, va="center")
    axes.axvline(floor, color=TEXT, linestyle="--", linewidth=1.5)
    axes.text(floor * 1.06, len(bars) - 0.4, f"raw py-lmdb get + msgpack: {floor:.1f}")
    axes.set_xscale("log")
    axes.set_xlim(1, max(bar[1] for bar in bars) * 2)
    axes.set_ylim(-0.6, len(bars) + 0.1)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("µs a replay, logarithmic")
    axes.set_title("A replay: kvreplay in blue, others in orange (less is better)")


def _durable(rows: Rows) -> None:
    drawn = ("lmdb", "sqlite", "filesystem", "raw")
    points: dict[str, list[tuple[int, float]]] = {each: [] for each in drawn}
    for name, figures in rows.items():
        section, _, row = name.partition("/")
        engine, _, who = row.partition(", ")
        if section == "durable" and engine in points:
            number = int(who.split()[0])
            points[engine].append((number, figures["executions/s"]))
            if engine == "lmdb":
                points["raw"].append((number, figures["raw executions/s"]))
    looks: dict[str, dict[str, Any]] = {
        "lmdb": {"label": "kvreplay, LMDB", "color": OURS, "marker": "o"},
        "sqlite": {"label": "kvreplay, SQLite", "color": OURS, "marker": "D"},
        "filesystem": {"label": "kvreplay, files", "color": OURS_TOO, "marker": "s"},
        "raw": {"label": "raw py-lmdb, one\ntransaction a write", "color": RIVAL, "marker": "^"},
    }
    _, axes = plt.subplots(figsize=(7.2, 4.2))
    ends = {}
    for engine, look in looks.items():
        if not points[engine]:
            continue  # an earlier run's figures do not have it
        *threads, tasks = sorted(points[engine])
        axes.plot([at for at, _ in threads], [rate for _, rate in threads], **look)
        axes.plot(*tasks, color=look["color"], marker=look["marker"])  # no line: not threads
        ends[engine] = tasks[1]
    top = 1.1 * max(rate for line in points.values() for _, rate in line)
    for engine, height in _apart(ends, top / 11).items():
        axes.annotate(
            looks[engine]["label"],
            (TASKS, height),
            xytext=(12, 0),
            textcoords="offset points",
            color=looks[engine]["color"],
            va="center",
        )
    axes.set_xscale("log")
    numbers = sorted({at for at, _ in points["lmdb"]})
    axes.set_xticks(numbers, [f"{at:,}\ntasks" if at == TASKS else f"{at}" for at in numbers])
    axes.minorticks_off()
    axes.set_ylim(0, top)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("threads, or asyncio tasks")
    axes.set_ylabel("executions a second")
    axes.set_title("Durable first executions (more is better)")


def _apart(heights: dict[str, float], distance: float) -> dict[str, float]:
    """Move labels away from each other."""
    moved: dict[str, float] = {}
    last = -distance
    for name, height in sorted(heights.items(), key=lambda each: each[1]):
        last = moved[name] = max(height, last + distance)
    return moved


def _scale(rows: Rows) -> None:
    _, (hits, opens) = plt.subplots(1, 2, figsize=(8, 3))
    for axes, what, figure, title in (
        (hits, "hit", "µs", "A replay"),
        (opens, "open", "ms", "Opening the store"),
    ):
        points = [
            (figures["records"], figures[figure])
            for name, figures in rows.items()
            if name.startswith(f"scale/{what}, ")
        ]
        axes.plot([at for at, _ in points], [cost for _, cost in points], "o-", color=OURS)
        for at, cost in points:
            axes.annotate(
                f"{cost:.3g}", (at, cost), xytext=(0, 8), textcoords="offset points", ha="center"
            )
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_ylim(0, 1.35 * max(cost for _, cost in points))
        axes.margins(x=0.15)
        axes.set_xlabel("records in the store")
        axes.set_ylabel(figure)
        axes.set_title(title)
    plt.tight_layout(w_pad=3)
