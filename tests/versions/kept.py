"""The stores of released versions, as files: ``0.1.0/`` and its like beside this one.

Each folder has

* ``holds.json``: the moment when all had been made, and each entry, in the order of creation, with what it is;
* ``lmdb.tar.gz``, ``filesystem.tar.gz``, ``sqlite.tar.gz``: a store of that engine with these entries, named ``store``;
* ``postgresql.sql``: the same, as ``pg_dump`` tells it, of a schema that is named ``kept_store``;
* ``etcd.json``: the keys below the prefix and their values in base64, in the order of their creation.

``make.py`` has made them. They never change: such bytes are in users' stores.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

import attrs

from kvreplay import Entry
from support.engines import Engine
from versions.asked import Address

__all__ = ["FOLDER", "SCHEMA", "STORE", "VERSIONS", "Kept", "Version", "lay", "schema_of"]

FOLDER: Final = Path(__file__).parent
STORE: Final = "store"
SCHEMA: Final = "kept_store"
VERSIONS: Final = sorted(each.parent.name for each in FOLDER.glob("*/holds.json"))


@attrs.frozen
class Kept:
    """One entry, and what it is."""

    what: str
    address: Address
    entry: Entry


@attrs.frozen
class Version:
    """What the stores of a version hold. ``now`` is when the last request had been made (ms)."""

    now: int
    kept: tuple[Kept, ...]

    @classmethod
    def named(cls, version: str) -> Version:
        told = json.loads((FOLDER / version / "holds.json").read_text(encoding="utf-8"))
        return cls(
            told["now"],
            tuple(
                Kept(
                    each["is"],
                    tuple(each["at"]),
                    Entry(bytes.fromhex(each["value"]), each["expires_at"]),
                )
                for each in told["entries"]
            ),
        )

    def write(self, folder: Path) -> None:
        lines = ",\n".join(
            "  "
            + json.dumps(
                {
                    "is": each.what,
                    "at": each.address,
                    "expires_at": each.entry.expires_at,
                    "value": each.entry.value.hex(),
                }
            )
            for each in self.kept
        )
        text = f'{{\n "now": {self.now},\n "entries": [\n{lines}\n ]\n}}\n'
        (folder / "holds.json").write_text(text, encoding="utf-8")

    @property
    def content(self) -> dict[Address, Entry]:
        return {each.address: each.entry for each in self.kept}

    @property
    def order(self) -> dict[tuple[str, str], list[str]]:
        """The keys of each namespace as its pages have them: the youngest first."""
        found = dict[tuple[str, str], list[str]]()
        for each in reversed(self.kept):
            found.setdefault(each.address[:2], []).append(each.address[2])
        return found


def lay(version: str, engine: Engine) -> None:
    """Put a copy of a version's store where this engine's is; nothing may be there."""
    folder = FOLDER / version
    if engine.name == "etcd":
        from support.shared_etcd import put_below

        keys = json.loads((folder / "etcd.json").read_text(encoding="utf-8"))
        put_below(str(engine.server), keys)
        return
    if engine.server is not None:
        from support.postgres import execute

        statements = (folder / "postgresql.sql").read_text(encoding="utf-8")
        execute(_server_of(engine.server), statements.replace(SCHEMA, schema_of(engine.server)))
        return
    assert engine.path.name == STORE
    with tarfile.open(folder / f"{engine.name}.tar.gz") as archive:
        archive.extractall(engine.path.parent, filter="tar")


def schema_of(url: str) -> str:
    """The schema that a store's URL names."""
    (schema,) = parse_qs(urlsplit(url).query)["schema"]
    return schema


def _server_of(url: str) -> str:
    """The URL without what only kvreplay understands."""
    parts = urlsplit(url)
    own = ("schema=", "pool_size=")
    kept = [each for each in parts.query.split("&") if not each.startswith(own)]
    return parts._replace(query="&".join(kept)).geturl()
