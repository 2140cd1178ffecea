"""A real PgBouncer in front of a PostgreSQL server, in Debian's version.

::

    with PgBouncer(server) as bouncer:            # pool_mode="transaction": nothing of a session survives
        open_store(schema.of(bouncer.url))        # its Unix socket; bouncer.tcp_url: 127.0.0.1
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any, Literal, Self
from urllib.parse import parse_qs, quote, urlsplit

import psycopg

from support.keeper import Keeper
from support.needs import missing
from support.postgres import free_port, new_folder, tcp_url

__all__ = ["PgBouncer"]

_INTERVAL = 0.01  # seconds between two looks whether it answers
_TRIES = 20  # with a port that another server may take meanwhile


class PgBouncer:
    """One pooler."""

    def __init__(
        self,
        server: Any,
        pool_mode: Literal["session", "transaction", "statement"] = "transaction",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Start it, and return when it answers.

        Args:
            server: a ``Server``, or the one that the session shares.
            pool_mode: when it gives a connection to the server to another client.
            settings: more lines of the section ``[pgbouncer]``.
        """
        program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
        if program is None:
            missing("needs PgBouncer: apt-get install pgbouncer")
        assert program is not None
        self._program = program
        self._server, self._pool_mode, self._settings = server, pool_mode, dict(settings or {})
        self._folder = new_folder(None, "kvpgb")
        self._log = self._folder / "log"
        self._keeper = Keeper(self._folder)
        self.port = 0
        try:
            self._start(program)
        except BaseException:
            self.close()
            raise

    def _start(self, program: str) -> None:
        for _ in range(_TRIES):
            self.port = free_port()
            ini = self._folder / "pgbouncer.ini"
            ini.write_text(self._configuration(), encoding="utf-8")
            users = self._folder / "users"
            users.write_text('"postgres" ""\n', encoding="utf-8")
            for file in (ini, users):
                file.chmod(0o644)
            started = self._keeper.run([program, str(ini)], self._log)
            while not started.has_ended(_INTERVAL) and not self._answers():
                pass
            if "Address already in use" not in self.log:
                assert not started.has_ended(), self.log
                return
            # It may run, and listen on its Unix socket alone.
            self._keeper.kill_all()
            self._log.write_bytes(b"")
        raise AssertionError(f"none of {_TRIES} ports was free")

    def restart(self) -> None:
        """Kill it, and start it again on its port and its socket."""
        self._keeper.kill_all()
        started = self._keeper.run([self._program, str(self._folder / "pgbouncer.ini")], self._log)
        while not started.has_ended(_INTERVAL) and not self._answers():
            pass
        assert not started.has_ended(), self.log

    def _configuration(self) -> str:
        to_server = parse_qs(urlsplit(self._server.url).query)
        settings = {
            "auth_file": self._folder / "users",
            "auth_type": "trust",
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "pool_mode": self._pool_mode,
            "unix_socket_dir": self._folder,
            **self._settings,
        }
        return "\n".join(
            [
                "[databases]",
                f"* = host={to_server['host'][0]} port={to_server['port'][0]}",
                "[pgbouncer]",
                *(f"{name} = {value}" for name, value in settings.items()),
                "",
            ]
        )

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url).close()
        except psycopg.OperationalError:
            return False  # it does not listen yet
        return True

    @property
    def url(self) -> str:
        """Of the database ``postgres``, by the Unix socket."""
        return f"postgresql://postgres@/postgres?host={quote(str(self._folder))}&port={self.port}"

    @property
    def tcp_url(self) -> str:
        return tcp_url(self.port)

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def close(self) -> None:
        """Kill it."""
        self._keeper.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
