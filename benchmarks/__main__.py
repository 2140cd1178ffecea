"""Run all benchmarks and write what they found: ``python -m benchmarks [--short] [PYTEST ARGS]``.

It writes ``benchmarks.json``, ``benchmarks.md`` and the charts to ``docs/``, or to ``--out``. A
short run says nothing about speed: without ``--out`` it only prints the tables.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.charts import draw
from benchmarks.report import markdown

_HERE = Path(__file__).parent


def main(argv: list[str]) -> int:
    """Return pytest's exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--short", action="store_true", help="run each once, on small sizes")
    parser.add_argument("--redraw", action="store_true", help="run nothing: use the last JSON")
    parser.add_argument("--out", type=Path, help="the folder to write to, instead of docs/")
    options, pytest_args = parser.parse_known_args(argv)
    out = options.out or _HERE.parent / "docs"
    if options.redraw:
        return write(json.loads((out / "benchmarks.json").read_text()), out)
    if options.short:
        pytest_args.append("--short")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        raw = Path(temporary) / "raw.json"
        pytest = [sys.executable, "-m", "pytest", str(_HERE), "-q", f"--benchmark-json={raw}"]
        code = subprocess.run(
            [*pytest, "--benchmark-columns=median,rounds", *pytest_args]
        ).returncode
        if code:
            return code
        found = compact(json.loads(raw.read_bytes()))
    found["machine"]["minutes"] = round((time.monotonic() - start) / 60, 1)
    if options.short and not options.out:
        with tempfile.TemporaryDirectory() as temporary:
            write(found, Path(temporary))
            print((Path(temporary) / "benchmarks.md").read_text())
        return 0
    return write(found, out)


def compact(raw: dict[str, Any]) -> dict[str, Any]:
    """Return our own rows and the machine, out of all that pytest-benchmark reports."""
    machine = raw["machine_info"]
    return {
        "machine": {
            "date": raw["datetime"].partition("T")[0],
            "processor": machine["cpu"].get("brand_raw", machine["machine"]),
            "cores": machine["cpu"].get("count"),
            "kernel": f"{machine['system']} {machine['release']}",
            "file system": machine["file system"],
            "flush (4 KiB, fdatasync) ms": machine["flush ms"],
            "Python": machine["python_version"],
            "py-lmdb": machine["lmdb"],
        },
        "rows": {
            row: figures
            for benchmark in raw["benchmarks"]
            for row, figures in benchmark["extra_info"].get("rows", {}).items()
        },
    }


def write(found: dict[str, Any], folder: Path) -> int:
    """Write the JSON, the tables and the charts."""
    folder.mkdir(exist_ok=True)
    (folder / "benchmarks.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    (folder / "benchmarks.md").write_text(markdown(found["machine"], found["rows"]))
    draw(found["rows"], folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
