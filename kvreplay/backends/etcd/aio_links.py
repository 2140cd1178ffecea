"""Connections to members, with awaits: a socket of our own, which the event loop waits for.

No transport of asyncio's: one of a loop that was closed could not be closed any more.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

from kvreplay.backends.etcd.addresses import Found, looked_up
from kvreplay.backends.etcd.cluster import Answer, Attempt, Member, NoAnswer, NotSent
from kvreplay.backends.etcd.exchange import CHUNK, Exchange
from kvreplay.backends.etcd.links import is_quiet, keep_alive

__all__ = ["AsyncLink", "connected"]

T = TypeVar("T")


class AsyncLink:
    """A connection, which one task uses at a time."""

    def __init__(self, wire: Wire, exchange: Exchange) -> None:
        self._wire = wire
        self._exchange = exchange

    async def ask(self, attempt: Attempt, until: float) -> Answer:
        """Send a request, and return the answer.

        Args:
            until: of the loop's ``time()``.

        Raises:
            NoAnswer: it did not come whole, or not in time.
        """
        try:
            async with asyncio.timeout_at(until):
                return await self._ask(attempt)
        except TimeoutError as error:
            raise NoAnswer("it has not answered in time") from error
        except OSError as error:
            raise NoAnswer(f"the connection was lost: {error}") from error

    async def _ask(self, attempt: Attempt) -> Answer:
        await self._wire.send(self._exchange.ask(attempt))
        while True:
            answer = self._exchange.hear(await self._wire.receive())
            if answer is not None:
                return answer

    def can_go_on(self) -> bool:
        """Say whether another request can follow."""
        return self._exchange.can_go_on()

    def is_good(self) -> bool:
        """Say whether the member has not ended it while nobody used it."""
        return is_quiet(self._wire.sock)

    def close(self) -> None:
        """End it; no loop is needed for that."""
        self._wire.sock.close()


class Wire:
    """A socket that does not block."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def receive(self) -> bytes:
        """Return some bytes; none: the other side has ended the connection."""
        return await self._loop.sock_recv(self.sock, CHUNK)


class SecureWire(Wire):
    """A socket on which TLS is spoken."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        super().__init__(sock)
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send, server_hostname=host)

    async def shake_hands(self) -> None:
        await self._until_done(self._tls.do_handshake)

    async def send(self, data: bytes) -> None:
        await self._until_done(self._tls.write, data)

    async def receive(self) -> bytes:
        try:
            return await self._until_done(self._tls.read, CHUNK)
        except ssl.SSLZeroReturnError:
            return b""

    async def _until_done(self, act: Callable[..., T], *args: Any) -> T:
        """Do something, and give TLS what it wants to read and to send for that."""
        while True:
            try:
                done, wants = [act(*args)], False
            except ssl.SSLWantReadError:
                done, wants = [], True
            if self._to_send.pending:
                await super().send(self._to_send.read())
            if not wants:
                return done[0]
            await self._take()

    async def _take(self) -> None:
        data = await super().receive()
        if data:
            self._received.write(data)
        else:
            self._received.write_eof()


async def connected(member: Member, context: ssl.SSLContext | None, within: float) -> AsyncLink:
    """Connect to a member.

    Raises:
        NotSent: it cannot be reached, or not in time (seconds).
    """
    until = asyncio.get_running_loop().time() + within
    try:
        async with asyncio.timeout_at(until):
            found = await asyncio.wrap_future(looked_up(member))
            wire = await _first_of(found, until, context, member.host)
    except OSError as error:
        why = "no connection in time" if isinstance(error, TimeoutError) else error
        raise NotSent(f"{member.authority}: {why}") from error
    return AsyncLink(wire, Exchange(member.authority))


async def _first_of(found: Found, until: float, context: ssl.SSLContext | None, host: str) -> Wire:
    """Connect to the first of these addresses that answers."""
    loop = asyncio.get_running_loop()
    failed = OSError("its name has no address")
    for number, (family, kind, protocol, _, address) in enumerate(found):
        share = (until - loop.time()) / (len(found) - number)
        sock = socket.socket(family, kind, protocol)
        try:
            async with asyncio.timeout(share):
                return await _spoken_on(sock, address, context, host)
        except OSError as error:
            sock.close()
            failed = error
        except BaseException:
            sock.close()
            raise
    raise failed


async def _spoken_on(
    sock: socket.socket, address: Any, context: ssl.SSLContext | None, host: str
) -> Wire:
    sock.setblocking(False)
    keep_alive(sock)
    await asyncio.get_running_loop().sock_connect(sock, address)
    if context is None:
        return Wire(sock)
    secure = SecureWire(sock, context, host)
    await secure.shake_hands()
    return secure
