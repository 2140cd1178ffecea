"""Find the addresses of a member, without waiting for DNS any longer than the caller can.

What asks DNS cannot be broken off. So it does that on a thread, which ends when DNS has answered.
It is none of the event loop's own, which an application may have filled.
"""

from __future__ import annotations

import socket
import threading
from concurrent.futures import Future
from typing import Any

from kvreplay.backends.etcd.cluster import Member

__all__ = ["Found", "looked_up"]

Found = list[tuple[Any, ...]]
"""What ``socket.getaddrinfo`` returns."""


def looked_up(member: Member) -> Future[Found]:
    """Return the addresses of a member, in the order in which to try them; or the OSError."""
    found: Future[Found] = Future()
    try:
        found.set_result(_ask(member, socket.AI_NUMERICHOST))  # of an address there is no doubt
    except socket.gaierror:
        try:
            threading.Thread(target=_answer, args=(found, member), daemon=True).start()
        except RuntimeError as error:  # there is no room for one, or the interpreter ends
            found.set_exception(OSError(str(error)))
    return found


def _answer(found: Future[Found], member: Member) -> None:
    if not found.set_running_or_notify_cancel():
        return
    try:
        found.set_result(_ask(member, 0))
    except BaseException as error:
        found.set_exception(error)


def _ask(member: Member, flags: int) -> Found:
    return socket.getaddrinfo(member.host, member.port, type=socket.SOCK_STREAM, flags=flags)
