"""A real proxy on loopback: it opens tunnels, and passes plain requests on."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.loopback import read_head, serving
from tests.patience import PATIENCE

_MOST = 16 * 1024  # bytes at a time: a record of TLS
OPEN = b"HTTP/1.1 200 Connection established\r\n\r\n"


@dataclass
class Forwarding:
    """What the proxy was asked, and what it shall answer.

    Attributes:
        heads: of the first request of each connection, as they came.
        says: to CONNECT.
        opens: it forwards what comes then.
        acts: what it does instead of anything else.
        elsewhere: where it connects to, instead of the host that it is told.
    """

    url: str = ""
    heads: list[bytes] = field(default_factory=list)
    says: bytes = OPEN
    opens: bool = True
    acts: Callable[[socket.socket], None] | None = None
    elsewhere: str = ""

    def serve(self, sock: socket.socket) -> None:
        """Forward what comes by one connection."""
        head = read_head(sock)
        self.heads.append(head)
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
        if self.acts is not None:
            self.acts(sock)
            return
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
        else:
            parts = urlsplit(target)
            host, port = parts.hostname or "", str(parts.port or 80)
        host = self.elsewhere or host.strip("[]")
        with socket.create_connection((host, int(port)), PATIENCE) as server:
            if method == "CONNECT":
                sock.sendall(self.says)
            else:  # servers have to take a whole URL (RFC 9112, section 3.2.2)
                server.sendall(head)
            if self.opens:
                relay(sock, server)


@contextlib.contextmanager
def forwarding(context: ssl.SSLContext | None = None) -> Iterator[Forwarding]:
    """A proxy, reached by TLS if there is a context."""
    proxy = Forwarding()
    with serving(proxy.serve, context) as proxy.url:
        yield proxy


def relay(one: socket.socket, other: socket.socket) -> None:
    """Pass on both ways at once: an answer may come while nobody takes the request."""
    held = {one: b"", other: b""}  # what each is still to be sent
    while True:
        full = [sock for sock, data in held.items() if data]
        free = [sock for sock in held if not held[one if sock is other else other]]
        ready = [one] if one in free and isinstance(one, ssl.SSLSocket) and one.pending() else []
        ready, takes, _ = (ready, [], []) if ready else select.select(free, full, [], PATIENCE)
        for sock in takes:
            held[sock] = held[sock][sock.send(held[sock][:_MOST]) :]
        for sock in ready:
            data = sock.recv(_MOST)
            if not data:
                return
            held[one if sock is other else other] = data
