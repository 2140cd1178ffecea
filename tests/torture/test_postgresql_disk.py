"""A PostgreSQL server whose tables are on a disk that is full."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvreplay import StoreFullError
from support.disks import fill_up, mounted
from support.keeper import as_servers_user
from support.postgres import Server, new_schema
from support.postgres_faults import FACES, Opener, rows_of

K = ("p", "s", "k")
LARGE = os.urandom(300_000)


@pytest.fixture(params=FACES)
def opened(request: pytest.FixtureRequest) -> Iterator[Opener]:
    opener = Opener(request.param)
    yield opener
    opener.close()


def test_nothing_is_written_to_a_full_disk(tmp_path: Path, opened: Opener) -> None:
    with mounted(tmp_path / "disk", "size=4m,mode=777") as disk, Server(18) as server:
        tables = disk / "tables"
        tables.mkdir()
        user = as_servers_user()
        if user:
            os.chown(tables, user["user"], user["group"])
        for folder in (tmp_path, *tmp_path.parents):
            if folder.stat().st_uid == os.geteuid() and len(folder.parts) > 2:
                folder.chmod(folder.stat().st_mode | 0o011)
        server.execute(f"CREATE TABLESPACE small LOCATION '{tables}'")
        server.execute("ALTER DATABASE postgres SET default_tablespace = 'small'")
        with new_schema(server) as schema:
            store = opened(schema.url)
            store.write(*K, b"v")
            fill_up(disk / "ballast")
            for _ in range(2):
                with pytest.raises(StoreFullError, match="nothing was written"):
                    store.check_and_put(*K, expected=b"v", value=LARGE)
                with pytest.raises(StoreFullError), store.transaction() as transaction:
                    transaction.write("p", "s", "small", b"s")
                    transaction.write("p", "s", "large", LARGE)
                assert store.read(*K) == b"v"
            assert rows_of(schema) == {"k": b"v"}
            (disk / "ballast").unlink()
            assert store.check_and_put(*K, expected=b"v", value=LARGE) == b"v"
            assert rows_of(schema) == {"k": LARGE}
            opened.close()
        server.close()
