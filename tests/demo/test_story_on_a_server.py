"""The story in a PostgreSQL database: it leaves there what was asked for, and nothing else."""

from __future__ import annotations

import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvreplay import StoreError, open_store
from kvreplay.cli import main
from kvreplay.demo import story
from support.extras import needs_postgresql

pytestmark = needs_postgresql


def schemas(server: Any) -> set[str]:
    return {name for (name,) in server.execute("SELECT nspname FROM pg_namespace")}


@pytest.fixture
def dying(tmp_path: Path) -> list[str]:
    """The command of a node that does not start, so that the story is short."""
    script = tmp_path / "dies.py"
    script.write_text("import sys; sys.exit('out of luck')")
    return [sys.executable, str(script)]


def with_password(url: str) -> str:
    """A server that trusts everybody takes any."""
    return url.replace("postgres@", "postgres:hunter%322@") + "&application_name=hunter2"


@pytest.fixture
def made(postgres: Any) -> Iterator[set[str]]:
    """Schemas that a test leaves behind; they are dropped after it."""
    names: set[str] = set()
    yield names
    for name in names:
        postgres.server.execute(f'DROP SCHEMA "{name}" CASCADE')


def test_the_story_is_true_and_its_schema_is_kept_with_the_directory(
    postgres: Any, made: set[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    url = with_password(postgres.server.tcp_url)
    code = main(["demo", "--store", url, "--dir", str(kept)])
    out, err = capfd.readouterr()
    [schema] = set(re.findall(r"kvreplay_demo_[0-9a-f]{8}", out))
    made.add(schema)
    assert (code, err) == (0, ""), out
    lines = out.splitlines()
    assert lines[-2] == f'The store in PostgreSQL is kept too, in the schema "{schema}"'
    assert lines[-1] == "11 steps, all true"
    assert max(map(len, (line for line in lines if str(tmp_path) not in line))) <= 80
    assert any("two node processes" in line and line.startswith("  ✓") for line in lines)
    config = kept / "postgresql" / "node.toml"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600  # it has the password
    assert "hunter" not in out + (kept / "postgresql" / "node.log").read_text()
    with open_store({"url": url, "schema": schema, "create": False}) as store:
        assert len(store.list("inbound_payments", "")) == 5


def test_without_a_directory_it_leaves_nothing(
    postgres: Any, dying: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert story.tell([postgres.server.url], command=dying) == 1
    out = capsys.readouterr().out
    [schema] = set(re.findall(r"kvreplay_demo_[0-9a-f]{8}", out))
    assert "out of luck" in out
    assert "kept" not in out
    assert schema not in schemas(postgres.server)


def test_a_schema_that_is_named_is_used_and_left(
    postgres: Any, dying: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    postgres.server.execute(f'CREATE SCHEMA "{postgres.name}"')
    kept = tmp_path / "kept"
    assert story.tell([postgres.url], str(kept), command=dying) == 1
    assert "kvreplay_demo_" not in capsys.readouterr().out
    assert "kvreplay_demo_" not in (kept / "postgresql" / "node.toml").read_text()
    assert postgres.name in schemas(postgres.server)


def test_a_store_that_is_there_is_refused(
    postgres: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_store(postgres.url) as store:
        store.write("p", "s", "k", b"precious")
    assert main(["demo", "--store", with_password(postgres.url)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("kvreplay: --store: there is a store already; nothing was started")
    with open_store(postgres.url) as store:
        assert list(store.list_all_keys()) == [("p", "s", "k")]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://u:hunter2@127.0.0.1:1/db?password=hunter2", "no connection to PostgreSQL"),
        ("postgres://u:hunter2@h/db?schema=%zz", 'a "%" without two hex digits'),
        ("postgresql://u@h/db?password=hunter2=", "libpq cannot read the URL"),
        ("postgresql://u:hunter2@h/db?pasword=hunter2", 'Did you mean "password"?'),
    ],
)
def test_a_server_that_cannot_be_reached_is_one_line(
    url: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--store", url]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err
    assert "hunter2" not in err


def test_a_role_that_may_make_no_schema_is_told(
    postgres: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    role = f"role_{postgres.name}"
    postgres.server.execute(f"CREATE ROLE {role} LOGIN")
    try:
        url = postgres.server.url.replace("postgres@", f"{role}:hunter2@")
        assert main(["demo", "--store", url]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "no schema could be made for the story (permission denied" in err
        assert "?schema=NAME" in err
        assert "hunter2" not in err
    finally:
        postgres.server.execute(f"DROP ROLE {role}")


def test_only_what_the_story_made_is_dropped_and_by_whoever_ends_it(postgres: Any) -> None:
    from kvreplay.demo.schema import new_schema

    with pytest.raises(KeyboardInterrupt), new_schema(postgres.server.url, kept=False) as schema:
        with open_store({"url": postgres.server.url, "schema": schema}) as store:
            store.write("p", "s", "k", b"v")
        open_store(postgres.url).close()
        raise KeyboardInterrupt
    assert schema not in schemas(postgres.server)
    assert postgres.name in schemas(postgres.server)


def test_a_schema_that_cannot_be_dropped_is_named(postgres: Any) -> None:
    from kvreplay.demo.schema import new_schema

    with pytest.raises(StoreError) as caught, new_schema(postgres.server.url, kept=False) as schema:
        postgres.server.execute(f"DROP SCHEMA {schema}")
    assert f"DROP SCHEMA {schema} CASCADE removes it" in str(caught.value)
