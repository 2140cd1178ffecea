"""Make the sdist and the wheel of a release, check both, and list what a plain install brings.

All lands in ``dist/``: what an index takes, and beside it ``kvreplay-VERSION.cdx.json``, a software bill of materials in
CycloneDX's form. It names the exact versions that a plain install got now. Nothing is uploaded.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"
NEEDED = {"kvreplay", "attrs", "lmdb", "msgpack"}


def run(*command: str | Path) -> str:
    """Run a program of this Python's, and stop at its first complaint."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, text=True, stdout=subprocess.PIPE
    )
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(f"FAILED: {' '.join(map(str, command))}")
    return done.stdout


def main() -> None:
    DIST.mkdir(exist_ok=True)
    for old in DIST.glob("kvreplay-*"):
        old.unlink()
    run("build", "--outdir", DIST)
    (sdist,), (wheel,) = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
    run("twine", "check", "--strict", sdist, wheel)
    run("check_wheel_contents", wheel)
    with tempfile.TemporaryDirectory() as folder:
        list_what_comes(wheel, Path(folder))


def list_what_comes(wheel: Path, folder: Path) -> None:
    """Install the wheel alone, and write the list of what is there then."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run("pip", "-q", "--python", python, "install", wheel)
    (origin,) = folder.glob("lib/*/site-packages/kvreplay-*/direct_url.json")
    origin.unlink()  # the wheel's path on this machine is nobody's concern
    version = wheel.name.split("-")[1]
    listed = DIST / f"kvreplay-{version}.cdx.json"
    run(
        *("cyclonedx_py", "environment", "--output-reproducible", "--of", "JSON"),
        *("--output-file", listed, python),
    )
    components = json.loads(listed.read_text(encoding="utf-8"))["components"]
    names = {each["name"]: each["version"] for each in components}
    assert set(names) == NEEDED, f"a plain install brings {sorted(names)}"
    assert names["kvreplay"] == version
    print(f"{listed.name}: {', '.join(map(' '.join, sorted(names.items())))}")


if __name__ == "__main__":
    main()
