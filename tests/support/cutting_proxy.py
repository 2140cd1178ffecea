"""A proxy on 127.0.0.1 in front of a real server, which counts what passes, and breaks the connection where a test wants.

::

    with CuttingProxy(postgres.tcp_url) as proxy:        # any URL that has an IPv4 address and a port
        store = open_store(proxy.url)
        before = proxy.passed()
        store.read("p", "s", "k")
        proxy.passed() - before                           # .round_trips, .to_server, .to_client (bytes)
        proxy.cut("to server", after=n)                   # the server gets exactly n more bytes
        proxy.cut("to client", after=n, how="close")
        proxy.stall("to client")                          # the server's answers come no more
        proxy.garble(after=n)                             # then the client gets garbage in their place
        proxy.refuse()
        proxy.delay(0.05)
        proxy.mend()                                      # all is as at first, for connections that are open
        assert proxy.cuts == 2                            # the faults were seen

What it is told holds when the call returns. A cut happens once, to the connection that passes the byte; each other
fault holds for all connections until ``mend()``.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal, Self
from urllib.parse import urlsplit

import attrs

from support.waiting import PATIENCE

__all__ = ["Connection", "CuttingProxy", "Direction", "Passed"]

Direction = Literal["to server", "to client"]
_DIRECTIONS: Sequence[Direction] = ("to server", "to client")
_Cut = Literal["reset", "close"]

_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: close() resets
_SIOCOUTQNSD = 0x894B  # how many bytes are not sent yet
_CHUNK = 1 << 16


@attrs.frozen
class Passed:
    """What has passed, in bytes; and how often the server's answer followed on a client's request."""

    to_server: int = 0
    to_client: int = 0
    round_trips: int = 0

    def __add__(self, other: Passed) -> Passed:
        return Passed(
            self.to_server + other.to_server,
            self.to_client + other.to_client,
            self.round_trips + other.round_trips,
        )

    def __sub__(self, other: Passed) -> Passed:
        return self + Passed(-other.to_server, -other.to_client, -other.round_trips)


class Connection:
    """One client's connection, and the proxy's own one to the server."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.passed = Passed()
        self.is_open = True
        self.server_port: int = server.getsockname()[1]
        """By which the server knows it: ``pg_stat_activity.client_port``."""
        self._ends = {"to server": (client, server), "to client": (server, client)}
        self._last: Direction = "to client"
        self._broken: asyncio.Future[_Cut] = asyncio.get_running_loop().create_future()
        self._ended: set[Direction] = set()

    def _break(self, how: _Cut) -> None:
        if not self._broken.done():
            self._broken.set_result(how)

    def _has_ended(self, direction: Direction) -> None:
        self._ended.add(direction)
        if len(self._ended) == len(_DIRECTIONS):
            self._break("close")

    def _count(self, direction: Direction, size: int) -> None:
        turned = direction == "to client" and self._last == "to server"
        self._last = direction
        if direction == "to server":
            self.passed += Passed(to_server=size)
        else:
            self.passed += Passed(to_client=size, round_trips=int(turned))


@attrs.define
class _Plan:
    """What happens in a direction, and after how many more bytes."""

    fault: _Cut | Literal["stall", "garbage"] | None
    left: int
    only: Connection | None = None
    """On which connection; ``None``: on whichever passes the byte."""


class CuttingProxy:
    """Forwards bytes both ways on a thread of its own, until it is told otherwise."""

    def __init__(self, url: str) -> None:
        """Start it in front of the server of this URL, of which ``url`` is the way through the proxy."""
        self.lead_to(url)
        self._holder = _bound(0)  # it never listens, and keeps the port while nobody does
        self.port = self._holder.getsockname()[1]
        host, port = self._target
        self.url = url.replace(f"{host}:{port}", f"127.0.0.1:{self.port}", 1)
        assert self.url != url, "the URL does not name its port, so nobody would use the proxy"
        self.connections: list[Connection] = []
        """All that were accepted and reached the server, in this order."""
        self.cuts = 0
        """How many connections were cut as :meth:`cut` and :meth:`cut_all` say."""
        self._plans: dict[Direction, _Plan] = {}
        self._delay = 0.0
        self._holding = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._mended = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cutting-proxy")
        self._thread.daemon = True
        self._thread.start()
        self._accepting: asyncio.Task[None] | None = None
        self._do(self._accept)

    def passed(self) -> Passed:
        """What has passed on all connections since the start; what a client has got is in it."""
        return sum((each.passed for each in self.connections), Passed())

    @property
    def open_connections(self) -> int:
        return sum(each.is_open for each in self.connections)

    @property
    def holds_back(self) -> bool:
        """Whether bytes have come that a stall holds back."""
        return self._holding > 0

    def lead_to(self, url: str) -> None:
        """Lead later connections to the server of this URL."""
        where = urlsplit(url)
        self._target = (where.hostname or "127.0.0.1", where.port)

    def cut(
        self,
        direction: Direction,
        *,
        after: int,
        how: _Cut = "reset",
        only: Connection | None = None,
    ) -> None:
        """Let exactly so many more bytes pass in this direction, and then break the connection, both ends of it.

        With 0 it breaks when the next byte comes, which does not pass. With ``only``, it is that connection.
        """
        self._do(lambda: self._plans.__setitem__(direction, _Plan(how, after, only)))

    def cut_all(self, how: _Cut = "reset") -> None:
        """Break all connections that are open, now; and return when this is done."""

        def cut() -> list[Connection]:
            found = [each for each in self.connections if each.is_open]
            self.cuts += len(found)
            for each in found:
                each._break(how)
            return found

        found: list[Connection] = []
        self._do(lambda: found.extend(cut()))
        self._await(self._until_closed(found))

    def stall(self, *directions: Direction, after: int = 0) -> None:
        """Hold back all bytes in these directions, or in both, once so many more have passed. They come after ``mend()``."""

        def stall() -> None:
            for each in directions or _DIRECTIONS:
                self._plans[each] = _Plan("stall", after)

        self._do(stall)

    def garble(self, *, after: int = 0) -> None:
        """Give clients garbage in place of the server's bytes, once so many more have passed."""
        self._do(lambda: self._plans.__setitem__("to client", _Plan("garbage", after)))

    def delay(self, seconds: float) -> None:
        """Let whatever passes wait for so long first, in each direction."""
        self._do(lambda: setattr(self, "_delay", seconds))

    def refuse(self) -> None:
        """Refuse connections from now on. The port stays this proxy's own. Open connections stay."""

        async def refuse() -> None:
            if self._accepting is not None:
                self._accepting.cancel()
                with suppress(asyncio.CancelledError):
                    await self._accepting
                self._accepting = None

        self._await(refuse())

    def mend(self) -> None:
        """Forget all faults that it was told; let pass what was held back."""

        def mend() -> None:
            self._plans.clear()
            self._delay = 0.0
            self._mended.set()
            self._mended = asyncio.Event()
            self._accept()

        self._do(mend)

    def close(self) -> None:
        """Reset all connections, and end."""
        self._await(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()
        self._holder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # On its thread.

    def _do(self, change: Callable[[], object]) -> None:
        async def do() -> None:
            change()

        self._await(do())

    def _await(self, coroutine: object) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)  # type: ignore[arg-type]

    def _accept(self) -> None:
        if self._accepting is None:
            listener = _bound(self.port)
            listener.listen(128)
            self._accepting = self._loop.create_task(self._accept_from(listener))

    async def _accept_from(self, listener: socket.socket) -> None:
        with listener:
            while True:
                client, _ = await self._loop.sock_accept(listener)
                task = self._loop.create_task(self._serve(client))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _end(self) -> None:
        await asyncio.sleep(0)  # each task has begun, and so closes its sockets
        tasks = [*self._tasks, *filter(None, [self._accepting])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _until_closed(self, connections: Sequence[Connection]) -> None:
        while any(each.is_open for each in connections):
            await asyncio.sleep(0)

    async def _serve(self, client: socket.socket) -> None:
        with client, socket.socket() as server:
            server.setblocking(False)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                await self._loop.sock_connect(server, self._target)
            except OSError:
                _reset(client)
                return
            connection = Connection(client, server)
            self.connections.append(connection)
            forwarding = [
                self._loop.create_task(self._forward(connection, each)) for each in _DIRECTIONS
            ]
            how: _Cut = "reset"
            try:
                how = await connection._broken
            finally:
                for task in forwarding:
                    task.cancel()
                await asyncio.gather(*forwarding, return_exceptions=True)
                connection.is_open = False
                if how == "reset":
                    _reset(client, server)
            if how == "close":
                await asyncio.gather(self._close(client), self._close(server))

    async def _forward(self, connection: Connection, direction: Direction) -> None:
        source, sink = connection._ends[direction]
        try:
            while data := await self._loop.sock_recv(source, _CHUNK):
                await asyncio.sleep(self._delay)
                if how := await self._pass(connection, direction, sink, data):
                    self.cuts += 1
                    connection._break(how)
                    return
            sink.shutdown(socket.SHUT_WR)
            connection._has_ended(direction)
        except OSError:  # one of the two has reset it
            connection._break("reset")

    async def _pass(
        self, connection: Connection, direction: Direction, sink: socket.socket, data: bytes
    ) -> _Cut | None:
        """Pass what may pass; return how to cut the connection then."""
        while data and not connection._broken.done():
            plan = self._plans.get(direction)
            if plan is None or plan.only not in (None, connection):
                plan = _Plan(None, len(data))
            passing, data = data[: plan.left], data[plan.left :]
            plan.left -= len(passing)
            cuts = plan.fault if plan.left == 0 and plan.fault in ("reset", "close") else None
            if cuts:
                del self._plans[direction]  # no other connection is cut
            if passing:
                connection._count(direction, len(passing))
                await self._loop.sock_sendall(sink, passing)
            if cuts:
                await self._until_sent(sink)
                return cuts
            if plan.fault == "stall" and data:
                self._holding += 1
                try:
                    await self._mended.wait()
                finally:
                    self._holding -= 1
            elif plan.fault == "garbage":
                await self._loop.sock_sendall(sink, _garbage(len(data)))
                data = b""
        return None

    async def _until_sent(self, sink: socket.socket) -> None:
        """A reset would drop what still waits here for room on the other side."""
        give_up = self._loop.time() + PATIENCE
        while fcntl.ioctl(sink, _SIOCOUTQNSD, bytes(4)) != bytes(4):
            assert self._loop.time() < give_up, "the bytes before the cut are not taken"
            await asyncio.sleep(0)

    async def _close(self, end: socket.socket) -> None:
        """End the connection in good order; drop what still comes, since closing would reset it then."""
        with suppress(OSError):
            end.shutdown(socket.SHUT_WR)
            while await self._loop.sock_recv(end, _CHUNK):
                pass


def _garbage(size: int) -> bytes:
    return (b"\xde\xad\xbe\xef" * (size // 4 + 1))[:size]


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    bound.setblocking(False)
    return bound


def _reset(*ends: socket.socket) -> None:
    for each in ends:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        each.close()
