"""Networks that a test has for itself, as root: hosts on one wire, any of which can be cut off from any other.

::

    with Network(3) as network:
        one, two, three = network.hosts
        with one.inside(): ...                # this thread, and what it starts meanwhile, is on that host
        with network.inside(): ...            # where the clients are: on the wire itself
        network.cut(one)                      # off from everybody
        network.part(one, two)                # these two do not hear each other
        network.block(one, two)               # two does not hear one, and one hears two
        network.heal()

What is blocked is dropped, and nobody is told: connections hang. A host is a network namespace without a name. It ends
with the test's process and with what runs in it, and nothing of the machine's own network is touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from support.needs import missing, needs_namespaces, needs_root

__all__ = ["Host", "Network", "enter", "needs_networks"]

_CLONE_NEWNET = 0x40000000
_HERE = "/proc/thread-self/ns/net"
_SUBNET = (
    "10.97.0"  # nobody else's, whatever the machine's own network has: it cannot be seen from there
)
_CLIENTS = 254
_NOBODY = "02:00:00:00:ff:ff"
_LIBC = ctypes.CDLL(None, use_errno=True)


def needs_networks() -> None:
    """That this machine lets a test make networks."""
    needs_root()
    if shutil.which("ip") is None:
        missing("needs ip: apt-get install iproute2")
    needs_namespaces("unshare", "--net")


def enter(namespace: str) -> None:
    """Let this thread, and what it starts from now on, be where :attr:`Host.namespace` is."""
    with _opened(namespace) as file:
        _check(_LIBC.setns(file, _CLONE_NEWNET))


class Host:
    """One place on the wire.

    Attributes:
        address: its IPv4 address, which all others reach.
    """

    def __init__(self, number: int) -> None:
        self.address = f"{_SUBNET}.{number}"
        self.link = f"02:00:00:00:00:{number:02x}"
        self._file = -1
        # A thread of its own, so that nobody else is moved there.
        maker = threading.Thread(target=self._make)
        maker.start()
        maker.join()
        if self._file < 0:
            missing("needs the right to make a network namespace")

    def _make(self) -> None:
        if _LIBC.unshare(_CLONE_NEWNET) == 0:
            self._file = os.open(_HERE, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def namespace(self) -> str:
        """A path by which another process, as root, can :func:`enter` while this one lives."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Let this thread, and the threads and processes that it starts meanwhile, be on this host."""
        with _opened(_HERE) as before:
            enter(self.namespace)
            try:
                yield
            finally:
                _check(_LIBC.setns(before, _CLONE_NEWNET))

    def set_up(self, *commands: str) -> None:
        """Run these commands of ``ip``."""
        with self.inside():
            done = subprocess.run(
                ["ip", "-batch", "-"],
                input="".join(f"{command}\n" for command in commands),
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 0, done.stderr

    def close(self) -> None:
        os.close(self._file)


class Network:
    """Hosts on one wire, and the clients, which are on it too."""

    def __init__(self, hosts: int) -> None:
        needs_networks()
        self.clients = Host(_CLIENTS)
        self.hosts = [Host(number + 1) for number in range(hosts)]
        self.clients.set_up(
            "link set lo up",
            f"link add name wire address {self.clients.link} type bridge",
            f"address add {self.clients.address}/24 dev wire",
            "link set wire up",
        )
        for number, host in enumerate(self.hosts):
            self.clients.set_up(
                f"link add name to{number} type veth"
                f" peer name wire address {host.link} netns {host.namespace}",
                f"link set to{number} master wire up",
            )
            host.set_up(
                *("link set lo up", "link set wire up"),
                f"address add {host.address}/24 dev wire",
            )
        self.heal()

    def inside(self) -> contextlib.AbstractContextManager[None]:
        """As :meth:`Host.inside`, where the clients are."""
        return self.clients.inside()

    def block(self, source: Host, *targets: Host) -> None:
        """Let nothing that a host sends reach the targets."""
        # Its frames go to an address that nobody has. As it is permanent, nobody is asked for the true one.
        self._point(source, [(target, _NOBODY) for target in targets])

    def part(self, host: Host, *others: Host) -> None:
        """Let a host and the others not hear each other."""
        self.block(host, *others)
        for other in others:
            self.block(other, host)

    def cut(self, host: Host) -> None:
        """Let a host hear nobody, nor be heard."""
        self.part(host, *self._others(host))

    def heal(self) -> None:
        """Let everybody hear everybody again."""
        for host in (self.clients, *self.hosts):
            self._point(host, [(other, other.link) for other in self._others(host)])

    def _others(self, host: Host) -> Sequence[Host]:
        return [each for each in (self.clients, *self.hosts) if each is not host]

    def _point(self, source: Host, links: Sequence[tuple[Host, str]]) -> None:
        source.set_up(
            *(
                f"neighbour replace {target.address} lladdr {link} dev wire nud permanent"
                for target, link in links
            )
        )

    def close(self) -> None:
        for host in (self.clients, *self.hosts):
            host.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextmanager
def _opened(path: str) -> Iterator[int]:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


def _check(returned: int) -> None:
    if returned:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
