"""Certificates for a test's servers and clients, made by ``openssl``."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Sequence
from pathlib import Path

import attrs

from support.needs import missing

__all__ = ["Authority", "Certificate"]

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_DAYS = "2"


@attrs.frozen
class Certificate:
    """The files, in PEM, of a certificate and of its key."""

    cert: Path
    key: Path


class Authority:
    """Who signs certificates; ``ca`` is the file that shows whom it has signed.

    ::

        authority = Authority(folder)
        server = authority.sign("server", "127.0.0.1", "localhost")
        client = authority.sign("client")
    """

    def __init__(self, folder: Path) -> None:
        """Make it.

        Args:
            folder: where its files are; it must exist. Everybody may read them: they are worth nothing.
        """
        if shutil.which("openssl") is None:
            missing("needs openssl: apt-get install openssl")
        self._folder = folder
        self.ca = folder / "ca.pem"
        self._own = Certificate(self.ca, folder / "ca.key")
        signs = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")  # Python 3.13 wants it
        self._request("/CN=kvreplay tests", "-x509", "-days", _DAYS, *signs, own=self._own)

    def sign(self, name: str, *hosts: str, common_name: bool = False) -> Certificate:
        """Make a certificate for a server or a client.

        Args:
            name: of its files, and of whom it is for.
            hosts: IPv4 addresses and names of hosts for which it is good.
            common_name: let the name be the common name, which a server may take for a user.
        """
        made = Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        names = ",".join(f"{'IP' if host[-1].isdigit() else 'DNS'}:{host}" for host in hosts)
        signed = ("-x509", "-days", _DAYS, "-CA", str(self.ca), "-CAkey", str(self._own.key))
        more = ("-addext", f"subjectAltName={names}") if names else ()
        leaf = ("-addext", "basicConstraints=critical,CA:FALSE")
        self._request(f"/{'CN' if common_name else 'O'}={name}", *signed, *leaf, *more, own=made)
        return made

    def context(self, client: Certificate | None = None) -> ssl.SSLContext:
        """For a client who trusts this authority, and shows this certificate."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if client is not None:
            context.load_cert_chain(client.cert, client.key)
        return context

    def _request(self, subject: str, *options: str, own: Certificate) -> None:
        files: Sequence[str] = ("-keyout", str(own.key), "-out", str(own.cert))
        done = subprocess.run(
            ["openssl", "req", *_KEY, "-subj", subject, *options, *files],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        for file in (own.key, own.cert):
            file.chmod(0o644)
