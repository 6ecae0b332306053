"""Opening a connection: to a server, or to the proxy on the way to it."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass, field
from typing import cast

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError
from urllib3.util import ssl_wrap_socket


@dataclass(frozen=True, slots=True)
class Hop:
    """Who is at the other end.

    Attributes:
        scheme: "http", or "https" for TLS.
        host: a name or an address, without brackets.
        port: of TCP.
    """

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """Host and port, as a proxy is told them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Way:
    """How a server is reached.

    Attributes:
        first: the server, or a proxy.
        tunnel: the server that the proxy has to open a tunnel to; None where it passes requests on,
            or there is none.
        proxied: `first` is a proxy.
        authorization: what the proxy wants to be told of who asks; empty if nothing.
    """

    first: Hop
    tunnel: Hop | None = None
    proxied: bool = False
    authorization: str = field(default="", repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What the proxy is told beside the request."""
        return {"Proxy-Authorization": self.authorization} if self.authorization else {}


def connect(hop: Hop, tls: ssl.SSLContext, seconds: float) -> socket.socket:
    """Return a socket to `hop`, over TLS if its scheme says so.

    Args:
        hop: whom to connect to.
        tls: whom to trust.
        seconds: for each step.

    Raises:
        ConnectTimeoutError: a step took longer.
        HTTPError: there is no connection.
        OSError: it failed, or the certificate is not trusted.
    """
    connection: HTTPConnection
    if hop.scheme == "https":
        connection = HTTPSConnection(hop.host, hop.port, timeout=seconds, ssl_context=tls)
    else:
        connection = HTTPConnection(hop.host, hop.port, timeout=seconds)
    try:
        connection.connect()
    except BaseException as error:
        connection.close()
        if isinstance(error, TimeoutError):  # within the TLS handshake
            raise ConnectTimeoutError from error
        raise
    return cast("socket.socket", connection.sock)


def secure(sock: socket.socket, hop: Hop, tls: ssl.SSLContext, seconds: float) -> socket.socket:
    """Return TLS with `hop` over a tunnel, which may be within TLS itself.

    Raises:
        ConnectTimeoutError: a step took longer than `seconds`.
        OSError: it failed, or the certificate is not trusted.
    """
    within = not is_plain(sock)
    sock.settimeout(seconds)
    try:
        wrapped = ssl_wrap_socket(
            sock, ssl_context=tls, server_hostname=hop.host.rstrip("."), tls_in_tls=within
        )
    except TimeoutError as error:
        raise ConnectTimeoutError from error
    return cast("socket.socket", wrapped)


def is_plain(sock: socket.socket) -> bool:
    """Whether the kernel's own socket, not TLS: what it can read are the bytes of an answer."""
    return isinstance(sock, socket.socket) and not isinstance(sock, ssl.SSLSocket)
