"""Real etcd clusters, which a test starts without root, and whose members it kills, freezes and cuts off as it wants.

::

    with Cluster() as cluster:                    # three members, which run and have a leader
        open_store(cluster.url("prefix"))         # all members; cluster.url("prefix", timeout="2s")
        member = cluster.leader()
        member.kill()                             # SIGKILL
        member.start()                            # on the same data and addresses
        cluster.until_ready()
        with member.frozen(): ...                 # SIGSTOP
        member.call("/v3/kv/range", key=coded(b"k"))    # a client of its own
    with Cluster(network=network) as cluster:     # each member on a host of a support.networks.Network
        network.cut(cluster.members[0].host)

etcd is this machine's own, or Debian's (``support.etcd_programs``). Data are in memory where that can be had. No process
survives the test's process.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import random
import signal
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote, urlencode

from support.certificates import Authority, Certificate
from support.disks import in_memory
from support.etcd_programs import etcd_program
from support.keeper import Keeper, Kept
from support.networks import Host, Network
from support.process_table import state_of
from support.signals import send
from support.waiting import PATIENCE, until

__all__ = [
    "ROOT_PASSWORD",
    "Cluster",
    "Member",
    "RefusedError",
    "UnavailableError",
    "coded",
    "decoded",
    "end_of_range",
]

ROOT_PASSWORD = "root's own"
"""Of etcd's user ``root``, in a cluster with ``auth``."""

_CLIENTS, _PEERS, _RESERVED = 2379, 2380, 2381
_PATIENCE = 2.0  # seconds that a call may take
_QUICK: Mapping[str, Any] = {
    "heartbeat-interval": 50,
    "election-timeout": 500,  # so a new leader is there within a second or so
    "bcrypt-cost": 4,
    "strict-reconfig-check": "false",  # it wants members that have been connected for five seconds
    "logger": "zap",
    "log-level": "warn",
}


class RefusedError(Exception):
    """A member has answered a call with an error."""


class UnavailableError(RefusedError):
    """It has said that the same call may succeed later, or at another member."""


def coded(data: bytes) -> str:
    """Bytes as etcd's JSON has them."""
    return base64.b64encode(data).decode()


def decoded(text: str) -> bytes:
    return base64.b64decode(text)


def end_of_range(prefix: bytes) -> bytes:
    """The ``range_end`` of all keys that begin with this prefix, whose last byte is not 255."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


class Member:
    """One etcd, whose folder and addresses stay the same while it is killed and started again."""

    def __init__(self, cluster: Cluster, name: str, address: str, host: Host | None) -> None:
        self.name, self.address, self._host = name, address, host
        self._cluster = cluster
        self._folder = Path(tempfile.mkdtemp(prefix="kvetcd-", dir=in_memory()))
        self._folder.chmod(0o755)
        self._log = self._folder / "log"
        # What it runs is where it was started itself.
        with host.inside() if host else contextlib.nullcontext():
            self._keeper = Keeper(self._folder)
        self._process: Kept | None = None
        self.joining: Sequence[Member] | None = None  # the members of the cluster that it joins
        self.certificate: Certificate | None = None

    @property
    def port(self) -> int:
        """On which it hears clients."""
        return _CLIENTS

    @property
    def host(self) -> Host:
        """Where it is in the cluster's network."""
        assert self._host is not None, "its cluster has no network"
        return self._host

    @property
    def client_url(self) -> str:
        scheme = "http" if self.certificate is None else "https"
        return f"{scheme}://{self.address}:{self.port}"

    @property
    def peer_url(self) -> str:
        return f"http://{self.address}:{_PEERS}"

    @property
    def log(self) -> str:
        """All that it has said."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def pid(self) -> int:
        assert self._process is not None, "it does not run"
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process is not None and not self._process.has_ended()

    def start(self) -> None:
        """Start it on its data. It answers later: see :meth:`Cluster.until_ready`."""
        assert not self.runs, "it runs already"
        self._process = self._keeper.run(self._command(), self._log)

    def _command(self) -> Sequence[str]:
        founders = [*self.joining, self] if self.joining is not None else self._cluster.founders
        tls = self.certificate
        options = {
            **_QUICK,
            "name": self.name,
            "data-dir": self._folder / "data",
            "listen-client-urls": self.client_url,
            "advertise-client-urls": self.client_url,
            "listen-peer-urls": self.peer_url,
            "initial-advertise-peer-urls": self.peer_url,
            "initial-cluster": ",".join(f"{each.name}={each.peer_url}" for each in founders),
            "initial-cluster-state": "new" if self.joining is None else "existing",
            "initial-cluster-token": self._cluster.token,
            **({} if tls is None else {"cert-file": tls.cert, "key-file": tls.key}),
            **self._cluster.settings,
        }
        return [str(etcd_program()), *(f"--{name}={value}" for name, value in options.items())]

    def kill(self) -> None:
        """Kill it, as a crash of its machine does, except that its files survive."""
        assert self._process is not None, "it does not run"
        self._keeper.kill_all()
        self._process.exit_code(PATIENCE)
        self._process = None

    def stop(self) -> None:
        """End it as an operator does: a leader hands over first."""
        self.thaw()
        send(signal.SIGTERM, self.pid)
        assert self._process is not None
        self._process.exit_code(PATIENCE)
        self._process = None

    def freeze(self) -> None:
        """Let it stand still: connections stay open, and nothing is answered."""
        send(signal.SIGSTOP, self.pid, "T")

    def thaw(self) -> None:
        send(signal.SIGCONT, self.pid)

    @property
    def is_frozen(self) -> bool:
        return self.runs and state_of(self.pid) == "T"

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            if self.runs:
                self.thaw()

    def call(
        self, path: str, *, token: str | None = None, within: float = _PATIENCE, **body: Any
    ) -> Any:
        """Call the v3 API as a client of its own; return what the JSON of its answer says.

        Args:
            path: such as ``/v3/kv/range``.
            token: whose call it is.
            within: seconds.

        Raises:
            RefusedError: its answer is an error.
            OSError: it does not answer.
        """
        if (authority := self._cluster.authority) is None:
            connection = http.client.HTTPConnection(self.address, self.port, timeout=within)
        else:
            context = authority.context(self._cluster.client)
            connection = http.client.HTTPSConnection(
                self.address, self.port, timeout=within, context=context
            )
        headers = {} if token is None else {"Authorization": token}
        try:
            connection.request("POST", path, json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        except http.client.HTTPException as error:
            raise ConnectionError(f"no answer: {error!r}") from error
        finally:
            connection.close()
        try:
            told = json.loads(text)
        except ValueError:
            told = text.strip()
        if answer.status != 200:
            raise (UnavailableError if answer.status == 503 else RefusedError)(answer.status, told)
        return told

    def status(self) -> dict[str, Any]:
        """What it knows of itself, without asking others; nothing if it does not answer."""
        if not self.runs or self.is_frozen:
            return {}
        with contextlib.suppress(OSError, RefusedError):
            told: dict[str, Any] = self.call("/v3/maintenance/status")
            return told
        return {}

    def complaint(self) -> str | None:
        """Why it does not answer what is true of all; ``None``: it does, so it hears a leader with a majority."""
        try:
            self.call("/v3/kv/range", key=coded(b"\0"), token=self._cluster.root_token())
        except (OSError, RefusedError) as error:
            return repr(error)
        return None

    def close(self) -> None:
        """Kill it, and remove its data."""
        self._process = None
        self._keeper.end()


class Cluster:
    """Some members that hold the same entries."""

    def __init__(
        self,
        members: int = 3,
        *,
        network: Network | None = None,
        tls: Literal["server", "mutual"] | None = None,
        auth: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Start it, and return when all members answer.

        Args:
            members: how many.
            network: where they are, one on each host; whoever calls them must be inside of it. ``None``:
                they are on addresses of their own of this machine's loopback.
            tls: ``"server"``: they show a certificate; ``"mutual"``: clients must too.
            auth: the user ``root`` has a password, and others see nothing.
            settings: etcd's options, as ``{"quota-backend-bytes": 2**20}``.
        """
        etcd_program()  # or the test is skipped
        self.settings = dict(settings or {})
        self.token = uuid.uuid4().hex
        self.authority: Authority | None = None
        self.client: Certificate | None = None
        self._tls, self._network = tls, network
        self._auth = False
        self._ends = contextlib.ExitStack()
        self._names = iter(range(1, 255))
        self._addresses = iter(
            [host.address for host in network.hosts] if network else self._own_addresses()
        )
        self.founders: list[Member] = []
        self.members: list[Member] = []
        try:
            if tls is not None:
                self._make_authority()
            self.founders = [self._new_member() for _ in range(members)]
            self.members = list(self.founders)
            for member in self.members:
                member.start()
            self.until_ready()
            if auth:
                self._demand_passwords()
        except BaseException:
            self.close()
            raise

    def _own_addresses(self) -> Iterator[str]:
        """Addresses of the loopback that no other cluster has while this one lives."""
        chance = random.SystemRandom()
        while True:
            net = f"127.{chance.randrange(1, 255)}.{chance.randrange(255)}"
            reserved = self._ends.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # it belongs to another cluster
                reserved.bind((f"{net}.1", _RESERVED))
                break
        for number in range(1, 255):
            yield f"{net}.{number}"

    def _make_authority(self) -> None:
        folder = Path(self._ends.enter_context(tempfile.TemporaryDirectory(prefix="kvetcd-tls-")))
        folder.chmod(0o755)
        self.authority = Authority(folder)
        if self._tls == "mutual":
            self.client = self.authority.sign("client")
            self.settings |= {"client-cert-auth": "true", "trusted-ca-file": self.authority.ca}

    def _new_member(self) -> Member:
        name, address = f"m{next(self._names)}", next(self._addresses)
        hosts = self._network.hosts if self._network else []
        host = next((each for each in hosts if each.address == address), None)
        member = Member(self, name, address, host)
        self._ends.callback(member.close)
        if self.authority is not None:
            member.certificate = self.authority.sign(name, address)
        return member

    def url(
        self,
        prefix: str,
        *members: Member,
        user: str = "",
        password: str = "",
        **options: Any,
    ) -> str:
        """What ``open_store`` takes: with whom to trust and whom to be.

        Args:
            members: who is asked, in this order; by default all.
        """
        if self.authority is not None:
            options = {"ca": self.authority.ca, **options}
        if self.client is not None:
            options = {"cert": self.client.cert, "key": self.client.key, **options}
        if self._auth and not user:
            user, password = "root", ROOT_PASSWORD
        who = f"{quote(user, safe='')}:{quote(password, safe='')}@" if user else ""
        hosts = ",".join(f"{each.address}:{each.port}" for each in members or self.members)
        query = f"?{urlencode(options)}" if options else ""
        return f"etcd://{who}{hosts}/{quote(prefix)}{query}"

    def call(self, path: str, **body: Any) -> Any:
        """As :meth:`Member.call`, of whichever member answers, as ``root`` if there are passwords.

        Only for what may be done twice.
        """
        found = []

        def is_answered() -> bool:
            for member in self._awake():
                try:
                    found.append(member.call(path, token=self.root_token(), **body))
                except (OSError, UnavailableError):
                    continue
                break
            return bool(found)

        until(is_answered)
        return found[0]

    def root_token(self) -> str | None:
        """Of a new session of ``root``'s; ``None``: there are no passwords."""
        if not self._auth:
            return None
        for member in self._awake():
            with contextlib.suppress(OSError, UnavailableError):
                found = member.call("/v3/auth/authenticate", name="root", password=ROOT_PASSWORD)
                return str(found["token"])
        raise ConnectionError("no member answers")

    def _awake(self) -> Sequence[Member]:
        return [each for each in self.members if each.runs and not each.is_frozen]

    def _demand_passwords(self) -> None:
        self.call("/v3/auth/user/add", name="root", password=ROOT_PASSWORD)
        self.call("/v3/auth/user/grant", user="root", role="root")
        self.call("/v3/auth/enable")
        self._auth = True
        self.until_ready()

    def leader(self) -> Member:
        """The member that leads; wait until there is one that most others agree on."""
        found: list[Member] = []

        def is_there() -> bool:
            told = {member.name: member.status() for member in self.members}
            leaders = [status.get("leader") for status in told.values()]
            for member in self.members:
                own = told[member.name].get("header", {}).get("member_id")
                if own is not None and leaders.count(own) > len(self.members) // 2:
                    found.append(member)
            return bool(found)

        until(is_there)
        return found[0]

    def followers(self) -> Sequence[Member]:
        """The other members."""
        leader = self.leader()
        return [member for member in self.members if member is not leader]

    def until_ready(self) -> None:
        """Wait until every member that runs answers what is true of all."""
        for member in self._awake():
            complaint: str | None = "not asked yet"
            give_up = time.monotonic() + PATIENCE
            while complaint is not None:
                complaint = member.complaint()
                hopeless = time.monotonic() > give_up or not member.runs
                assert complaint is None or not hopeless, f"{complaint}\n{member.log[-5000:]}"

    def start_all(self) -> None:
        """Start the members that do not run, thaw the others, and wait until all are ready."""
        for member in self.members:
            if member.runs:
                member.thaw()
            else:
                member.start()
        self.until_ready()

    def add(self) -> Member:
        """Add a member, and wait until it is ready."""
        member = self._new_member()
        self.call("/v3/cluster/member/add", peerURLs=[member.peer_url])
        member.joining = list(self.members)
        self.members.append(member)
        member.start()
        self.until_ready()
        return member

    def remove(self, member: Member) -> None:
        """Remove a member from the cluster, which ends it."""
        id = member.status()["header"]["member_id"]
        self.members.remove(member)
        self.call("/v3/cluster/member/remove", ID=id)
        member.close()

    def close(self) -> None:
        """Kill all, and remove their data."""
        self._ends.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
