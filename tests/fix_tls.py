"""Certificates made on the fly, and an end of TLS before a plain broker.

The relay shows any certificate and speaks any version, which a broker would
have to be restarted for.
"""

import contextlib
import dataclasses
import selectors
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

__all__ = ["Authority", "Certificate", "TlsRelay"]

HOST = "127.0.0.1"
GOOD_NAMES = f"IP:{HOST}, DNS:localhost"


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Two PEM files."""

    chain: str
    key: str


class Authority:
    """A CA of a test's own."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        """Make its certificate."""
        self._folder = folder
        self._name = name
        self.file = str(folder / f"{name}.pem")
        self._request(name, "-x509", "-days", "2", "-out", self.file)

    def sign(self, name: str, names: str = GOOD_NAMES, *, days: int = 2) -> Certificate:
        """Make a certificate.

        :param name: of its files.
        :param names: what it is for, as subjectAltName; empty for none.
        :param days: of validity; with 0 it is over at once.
        """
        request = str(self._folder / f"{name}.csr")
        chain = str(self._folder / f"{name}.pem")
        self._request(name, "-out", request)
        extensions = self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName = {names}\n" if names else "")
        _openssl(
            *("x509", "-req", "-in", request, "-out", chain, "-days", str(days)),
            *("-CA", self.file, "-CAkey", self._key(self._name)),
            *("-CAcreateserial", "-extfile", str(extensions)),
        )
        return Certificate(chain, self._key(name))

    def _key(self, name: str) -> str:
        return str(self._folder / f"{name}.key")

    def _request(self, name: str, *more: str) -> None:
        _openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"),
            *("-keyout", self._key(name), *more),
        )


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


class TlsRelay:
    """Accepts TLS and passes the bytes on to a broker's plain port.

    :ivar accepted: connections that got through the handshake.
    :ivar versions: of TLS, one for each of them.
    :ivar names: that clients asked for (SNI), None if they named nobody.
    :ivar records: how many bytes each record carried to the broker.
    """

    def __init__(
        self,
        broker: Any,
        certificate: Certificate,
        *,
        at_least: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
        at_most: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
    ) -> None:
        self._broker = broker
        self._versions = at_least, at_most
        self.versions: list[str] = []
        self.names: list[str | None] = []
        self.records: list[int] = []
        self.accepted = 0
        self.show(certificate)
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> "TlsRelay":
        return self

    def __exit__(self, *exc_info: object) -> None:
        # An accept() in another thread ends by this, not by close().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(10)

    def show(self, certificate: Certificate) -> None:
        """Show another certificate, to connections from now on."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.chain, certificate.key)
        context.sni_callback = lambda _, name, __: self.names.append(name)
        context.minimum_version, context.maximum_version = self._versions
        if self._versions[0] < ssl.TLSVersion.TLSv1_2:
            context.set_ciphers("DEFAULT:@SECLEVEL=0")
        self._context = context

    def cut(self) -> None:
        """End all connections, without a farewell."""
        for pair in self._pairs:
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def half_close(self) -> None:
        """Send a FIN on all connections, and go on reading."""
        for client, _ in self._pairs:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(client, socket.SHUT_WR)

    def url(self, scheme: str, host: str = HOST, **query: object) -> str:
        """Give the transport URL of the relay."""
        text = self._broker.url(scheme, **query)
        plain = f"@{self._broker.host}:{self._broker.port}/"
        assert plain in text
        return str(text.replace(plain, f"@{host}:{self.port}/", 1))

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            client = self._context.wrap_socket(sock, server_side=True)
        except OSError:  # also all of ssl
            sock.close()
            return
        self.accepted += 1
        self.versions.append(str(client.version()))
        with (
            client,
            socket.create_connection((self._broker.host, self._broker.port)) as node,
        ):
            self._pairs.append((client, node))
            with contextlib.suppress(OSError):
                _relay(client, node, self.records)


def _relay(client: ssl.SSLSocket, node: socket.socket, records: list[int]) -> None:
    """Pass bytes both ways until either side ends.

    :param records: gets the size of each record of the client's: OpenSSL gives no
        more than one at a time.
    """
    # One thread: an SSLSocket is not to be read and written at once.
    with selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_READ, node)
        selector.register(node, selectors.EVENT_READ, client)
        while True:
            for key, _ in selector.select():
                source, target = key.fileobj, key.data
                while True:
                    data = source.recv(65536)  # type: ignore[union-attr]
                    if not data:
                        return
                    if source is client:
                        records.append(len(data))
                    target.sendall(data)
                    if source is node or client.pending() == 0:
                        break
