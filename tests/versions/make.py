"""Make the folder of a version, which is about to be released: its stores, and what they hold.

At the root of the repository, with what the tests need::

    PYTHONPATH=.:tests python -m versions.make 0.1.0

Run it once for a release, and commit the folder. It refuses a version that has one: those bytes are kept.
"""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from kvreplay import open_store
from kvreplay.backends.memory import MemoryStore
from kvreplay.testing import ManualClock
from support.etcd import coded, decoded, end_of_range
from support.postgres import Schema, Server, programs_of
from support.shared_etcd import Prefix, new_prefix, shared_etcd
from versions.asked import ask_all
from versions.kept import FOLDER, SCHEMA, STORE, Kept, Version

__all__ = ["made_in"]

_OF_A_CLIENT = re.compile(r"(\\|SET |SELECT pg_catalog\.set_config|--|$)")


def made_in(store: object) -> Version:
    """Make all requests of a store, and return what it then holds."""
    clock = ManualClock()
    made = ask_all(store, clock)
    read_entry = store.read_entry  # type: ignore[attr-defined]
    kept = (Kept(what, address, read_entry(*address)) for address, what in made.items())
    return Version(clock.now_ms(), tuple(kept))


def make(folder: Path) -> None:
    with MemoryStore() as store:
        version = made_in(store)
    for engine in ("lmdb", "filesystem", "sqlite"):
        with tempfile.TemporaryDirectory() as made:
            _fill(f"{engine}:{made}/{STORE}", version)
            _pack(Path(made), folder / f"{engine}.tar.gz")
    with Server() as server:
        schema = Schema(server, SCHEMA)
        _fill(schema.url, version)
        (folder / "postgresql.sql").write_text(_dump(server), encoding="utf-8")
    with new_prefix(shared_etcd()) as prefix:
        _fill(prefix.url, version)
        (folder / "etcd.json").write_text(_keys(prefix), encoding="utf-8")
    version.write(folder)


def _fill(url: str, version: Version) -> None:
    with open_store(url) as store:
        assert made_in(store) == version, "two engines hold different bytes"


def _pack(folder: Path, archive: Path) -> None:
    """Pack all that lies in a folder, without its owners' names and the time of packing."""

    def nameless(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        return member

    with (
        gzip.GzipFile(archive, "wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name, filter=nameless)


def _dump(server: Server) -> str:
    """Return the statements that make the schema again, whatever the client and its version."""
    command = [
        str(programs_of(server.version) / "pg_dump"),
        f"--schema={SCHEMA}",
        *("--no-owner", "--no-privileges", "--no-comments", "--inserts"),
        server.url,
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = said.splitlines(keepends=True)
    return "".join(each for each in lines if not _OF_A_CLIENT.match(each))


def _keys(prefix: Prefix) -> str:
    """Return the keys below a prefix and their values, in the order of their creation, as lines of JSON."""
    root = f"/{prefix.name}/".encode()
    asked = {"key": coded(root), "range_end": coded(end_of_range(root)), "sort_target": "CREATE"}
    found = prefix.server.call("/v3/kv/range", **asked, sort_order="ASCEND")["kvs"]
    pairs = [(decoded(kv["key"])[len(root) :].decode(), kv.get("value", "")) for kv in found]
    return "[\n" + ",\n".join(f" {json.dumps(pair)}" for pair in pairs) + "\n]\n"


def main(version: str) -> None:
    folder = FOLDER / version
    folder.mkdir()  # an error, if there is one: it is kept as it is
    make(folder)


if __name__ == "__main__":
    main(sys.argv[1])
