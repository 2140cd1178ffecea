"""The servers that the tests of this engine start: each can do what those tests rely on."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import psycopg
import pytest

from support.cutting_proxy import CuttingProxy, Direction, Passed
from support.pgbouncer import PgBouncer
from support.postgres import (
    VERSIONS,
    Schema,
    Server,
    Standby,
    new_schema,
    programs_of,
    url_of_any,
    within_reach,
)
from support.process_table import children_of, state_of
from support.programs import Program
from support.shared_postgres import SharedServer, shared_server
from support.waiting import PATIENCE, until

pytestmark = pytest.mark.any_python


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def server(version: int) -> Iterator[Server]:
    with Server(version) as server:
        yield server


@pytest.fixture
def newest() -> Iterator[Server]:
    """For what does not depend on the version."""
    with Server() as server:
        yield server


@pytest.fixture
def shared() -> SharedServer:
    return shared_server()


@pytest.fixture
def proxy(shared: SharedServer) -> Iterator[CuttingProxy]:
    with CuttingProxy(shared.tcp_url) as proxy:
        yield proxy


def connect(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url, autocommit=True, prepare_threshold=None)


def port_reached(url: str) -> int:
    with connect(url) as connection:
        return connection.info.port


# A server of a test's own.


def test_it_answers_by_its_socket_and_by_tcp_and_flushes(server: Server) -> None:
    for url in (server.url, server.tcp_url):
        with connect(url) as connection:
            assert connection.info.server_version // 10_000 == server.version
            assert connection.execute("SHOW fsync").fetchall() == [("on",)]


def test_what_was_committed_survives_a_kill_and_nothing_else(server: Server) -> None:
    server.execute("CREATE TABLE kept AS SELECT 1 AS it")
    processes = {server.pid, *children_of(server.pid)}
    with psycopg.connect(server.tcp_url) as open_one:
        open_one.execute("INSERT INTO kept VALUES (2)")
        server.kill()
        assert not server.runs
        assert {state_of(pid) for pid in processes} == {""}
        with pytest.raises(psycopg.OperationalError):
            open_one.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        connect(server.tcp_url)
    tcp_url = server.tcp_url
    server.start()
    assert server.tcp_url == tcp_url
    assert server.execute("SELECT it FROM kept") == [(1,)]
    assert "database system was not properly shut down" in server.log


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_a_restart_keeps_the_data(
    newest: Server, mode: Literal["smart", "fast", "immediate"]
) -> None:
    newest.execute("CREATE TABLE kept AS SELECT 1 AS it")
    before = newest.pid
    newest.restart(mode)
    assert newest.pid != before
    assert newest.execute("SELECT it FROM kept") == [(1,)]
    recovered = "was not properly shut down" in newest.log
    assert recovered == (mode == "immediate")


def test_a_frozen_server_answers_when_it_is_thawed(server: Server) -> None:
    with connect(server.tcp_url) as connection:
        answered = []
        asking = threading.Thread(
            target=lambda: answered.extend(connection.execute("SELECT 1").fetchall())
        )
        with server.frozen():
            asking.start()
            processes = {server.pid, *children_of(server.pid)}
            assert {state_of(pid) for pid in processes} == {"T"}
            assert connection.info.backend_pid in processes
        asking.join(PATIENCE)
        assert answered == [(1,)]


def test_settings_and_a_disk() -> None:
    disk = Path(tempfile.gettempdir())  # nobody but root enters what pytest makes there
    with Server(settings={"max_connections": 17}, folder=disk) as server:
        assert server.execute("SHOW max_connections") == [("17",)]
        assert server.data.is_relative_to(disk)
    assert not server.data.exists()


def test_a_port_that_is_taken_is_left_alone(
    shared: SharedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        reserved_port = reserved.getsockname()[1]
        for module in ("postgres", "pgbouncer"):
            ports = iter([taken.getsockname()[1], reserved_port])
            monkeypatch.setattr(f"support.{module}.free_port", ports.__next__)
        reserved.close()
        with Server() as server:
            assert port_reached(server.tcp_url) == reserved_port
        with PgBouncer(shared) as bouncer:
            assert port_reached(bouncer.tcp_url) == reserved_port


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs servers as another user")
def test_a_wheel_that_the_servers_user_cannot_reach_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = programs_of(18).parents[1]
    assert within_reach(reached) == reached
    for each in reached.parent.glob(f"{reached.name}*"):
        shutil.copytree(each, tmp_path / each.name)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        copy = within_reach(tmp_path / reached.name)
        assert copy.is_relative_to(folder)
        assert within_reach(tmp_path / reached.name) == copy


OWNER = """
import signal, sys
from support.postgres import Server, Standby
from support.process_table import children_of
server = Server(int(sys.argv[1]))
standby = Standby(server)
standby.freeze()
servers = {pid for each in (server, standby) for pid in (each.pid, *children_of(each.pid))}
print(*servers, flush=True)
print(server.data.parent, flush=True)
signal.pause()
"""


def test_no_process_and_no_file_survives_the_one_that_started_them(version: int) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with Program([sys.executable, "-c", OWNER, str(version)], env) as owner:
        servers = [int(pid) for pid in owner.hear().split()]
        folder = Path(owner.hear())
        assert len(servers) > 8 and folder.exists()
        owner.kill()
    until(lambda: {state_of(pid) for pid in servers} == {""})
    until(lambda: not folder.exists())


# The shared one.

USER = """
import sys
from support.shared_postgres import shared_server
print(shared_server().url, flush=True)
sys.stdin.readline()
"""


def test_the_shared_server_lives_as_long_as_any_user() -> None:
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTEST_XDIST_TESTRUNUID": f"of-this-test-{os.getpid()}",
    }
    command = [sys.executable, "-c", USER]
    with Program(command, env) as first, Program(command, env) as second:
        url = first.hear()
        assert second.hear() == url
        first.kill()
        with Program(command, env) as third:
            assert third.hear() == url
            second.kill()
            assert answers(url)
            third.kill()
        until(lambda: not answers(url))
    with Program(command, env) as later:
        assert later.hear() != url


def answers(url: str) -> bool:
    try:
        connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def test_a_schema_is_dropped_even_if_a_transaction_is_open_there(shared: SharedServer) -> None:
    with new_schema(shared) as schema:
        assert schema.url == f"{shared.url}&schema={schema.name}"
        shared.execute(f"CREATE SCHEMA {schema.name} CREATE TABLE it (column_ int)")
        holder = psycopg.connect(shared.url)
        holder.execute(f"INSERT INTO {schema.name}.it VALUES (1)")
    found = shared.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", schema.name)
    assert found == []
    holder.close()


def test_each_test_has_a_schema_of_its_own(postgres: Schema) -> None:
    with new_schema(postgres.server) as other:
        assert other.name != postgres.name


# A pooler.


def test_pgbouncer_keeps_nothing_of_a_session_between_transactions(shared: SharedServer) -> None:
    with PgBouncer(shared, "transaction") as bouncer:
        for url in (bouncer.url, bouncer.tcp_url):
            with connect(url) as one, connect(url) as two:
                one.execute("SET work_mem = '77kB'")
                assert two.execute("SHOW work_mem").fetchall() == [("77kB",)]
                assert one.info.backend_pid != server_process_of(one)
        with pytest.raises(psycopg.OperationalError, match="unsupported startup parameter"):
            psycopg.connect(bouncer.url, options="-c work_mem=77kB")
    with PgBouncer(shared, "session") as bouncer:
        with connect(bouncer.url) as one, connect(bouncer.url) as two:
            assert server_process_of(one) != server_process_of(two)


def server_process_of(connection: psycopg.Connection[Any]) -> int:
    [(pid,)] = connection.execute("SELECT pg_backend_pid()").fetchall()
    return int(pid)


# A standby.


@pytest.mark.parametrize("synchronous", [False, True])
def test_a_promoted_standby_takes_writes(server: Server, synchronous: bool) -> None:
    server.execute("CREATE TABLE kept AS SELECT 1 AS it")
    with Standby(server, synchronous=synchronous) as standby:
        server.execute("INSERT INTO kept VALUES (2)")
        until(lambda: standby.execute("SELECT it FROM kept") == [(1,), (2,)])
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            standby.execute("INSERT INTO kept VALUES (3)")
        either = url_of_any(standby, server)
        assert port_reached(either) == server.port
        server.kill()
        standby.promote()
        assert port_reached(either) == standby.port
        standby.execute("INSERT INTO kept VALUES (3)")
        assert standby.execute("SELECT it FROM kept") == [(1,), (2,), (3,)]


@pytest.mark.parametrize("synchronous", [False, True])
def test_a_commit_waits_for_a_synchronous_standby(newest: Server, synchronous: bool) -> None:
    newest.execute("CREATE TABLE kept (it int)")
    committed = threading.Event()

    def insert() -> None:
        newest.execute("INSERT INTO kept VALUES (1)")
        committed.set()

    with Standby(newest, synchronous=synchronous) as standby:
        inserting = threading.Thread(target=insert)
        with standby.frozen():
            inserting.start()
            if synchronous:
                waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                until(lambda: newest.execute(waiting))
                assert not committed.is_set()
            else:
                assert committed.wait(PATIENCE)
        inserting.join(PATIENCE)
        assert committed.is_set()


# A connection that breaks.

SWAP = "INSERT INTO it VALUES (%s)"


@pytest.fixture
def table(shared: SharedServer) -> Iterator[str]:
    with new_schema(shared) as schema:
        shared.execute(f"CREATE SCHEMA {schema.name} CREATE TABLE it (n int)")
        yield f"{schema.name}.it"


def test_the_proxy_counts_bytes_and_round_trips(proxy: CuttingProxy) -> None:
    with connect(proxy.url) as connection:
        before = proxy.passed()
        connection.execute("SELECT 1")
        once = proxy.passed() - before
        assert once.round_trips == 1 and once.to_server > 8 and once.to_client > 8
        connection.execute("SELECT 1")
        assert proxy.passed() - before == once + once
        with connection.transaction():  # BEGIN, then COMMIT
            connection.execute("SELECT 1")
        assert (proxy.passed() - before).round_trips == 5


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("direction", ["to server", "to client"])
def test_the_proxy_cuts_at_every_byte_of_a_round_trip(
    proxy: CuttingProxy,
    shared: SharedServer,
    table: str,
    direction: Direction,
    how: Literal["reset", "close"],
) -> None:
    insert = f"INSERT INTO {table} VALUES (1)"
    with connect(proxy.url) as connection:
        before = proxy.passed()
        connection.execute(insert)
        whole = proxy.passed() - before
    size = whole.to_server if direction == "to server" else whole.to_client
    for after in range(size + 1):
        with connect(proxy.url) as connection:
            before, rows = proxy.passed(), count(shared, table)
            proxy.cut(direction, after=after, how=how)
            if direction == "to client" and after == size:
                connection.execute(insert)  # the answer has come; then the connection ends
            else:
                with pytest.raises(psycopg.OperationalError, match="unexpectedly|socket closed"):
                    connection.execute(insert)
        passed = proxy.passed() - before
        all_came = direction == "to client" or after == size
        if direction == "to server":
            assert passed.to_server == after
        else:
            assert passed == Passed(whole.to_server, after, int(after > 0))
        if all_came:
            until(lambda rows=rows: count(shared, table) == rows + 1)  # type: ignore[misc]
        else:
            assert count(shared, table) == rows
    assert proxy.cuts == size + 1


def count(shared: SharedServer, table: str) -> int:
    [(rows,)] = shared.execute(f"SELECT count(*) FROM {table}")
    return int(rows)


def test_a_cut_hits_one_connection_and_the_next_is_whole(proxy: CuttingProxy) -> None:
    with connect(proxy.url) as one, connect(proxy.url) as two:
        proxy.cut("to server", after=0)
        with pytest.raises(psycopg.OperationalError):
            one.execute("SELECT 1")
        assert two.execute("SELECT 1").fetchall() == [(1,)]
        assert (proxy.cuts, proxy.open_connections) == (1, 1)
        proxy.cut_all()
        assert (proxy.cuts, proxy.open_connections) == (2, 0)
        with pytest.raises(psycopg.OperationalError):
            two.execute("SELECT 1")
    connect(proxy.url).close()


def test_the_proxy_refuses(proxy: CuttingProxy) -> None:
    with connect(proxy.url) as before:
        proxy.refuse()
        with pytest.raises(psycopg.OperationalError, match="refused"):
            connect(proxy.url)
        before.execute("SELECT 1")
        proxy.mend()
        connect(proxy.url).close()


@pytest.mark.parametrize("directions", [(), ("to server",), ("to client",)])
@pytest.mark.parametrize("after", [0, 5])
def test_the_proxy_stalls(
    proxy: CuttingProxy, directions: tuple[Direction, ...], after: int
) -> None:
    with connect(proxy.url) as connection:
        before = proxy.passed()
        answered: list[Any] = []
        asking = threading.Thread(
            target=lambda: answered.extend(connection.execute("SELECT 1").fetchall())
        )
        proxy.stall(*directions, after=after)
        asking.start()
        until(lambda: proxy.holds_back)
        passed = proxy.passed() - before
        assert (passed.to_client if directions == ("to client",) else passed.to_server) == after
        assert answered == []
        proxy.mend()
        asking.join(PATIENCE)
        assert answered == [(1,)]


@pytest.mark.parametrize("after", [0, 1, 5, 20])
def test_the_proxy_answers_garbage(proxy: CuttingProxy, after: int) -> None:
    with connect(proxy.url) as connection:
        proxy.garble(after=after)
        with pytest.raises(psycopg.Error):
            connection.execute("SELECT 1").fetchall()
    proxy.mend()
    with connect(proxy.url) as connection:
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_the_proxy_delays_and_leads_elsewhere(proxy: CuttingProxy, shared: SharedServer) -> None:
    with connect(proxy.url) as connection:
        proxy.delay(0.01)
        connection.execute("SELECT 1")
        proxy.mend()
    with socket.create_server(("127.0.0.1", 0)) as other:
        proxy.lead_to(f"postgresql://127.0.0.1:{other.getsockname()[1]}/")
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            client.sendall(b"hello")
            accepted, _ = other.accept()
            with accepted:
                assert accepted.recv(5) == b"hello"
    with pytest.raises(psycopg.OperationalError):
        connect(proxy.url)  # nobody listens there any more
