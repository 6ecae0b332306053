"""A proxy in front of a real S3 server that misbehaves once for a request that matches."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

CHUNK = 1 << 18


@dataclass
class Misdeed:
    """What happens to requests whose request line matches `pattern`.

    Attributes:
        pattern: a regular expression, such as "PUT .*uploadId".
        deed: "answer" `status` and `code` instead of the server; "refuse" the same without taking
            the body; "lose" the server's answer, after it did what was asked; "reset" before it
            heard; "halve" its answer's body; "stall" without a word; "flip" a byte of the body.
        times: how many requests; the others pass.
    """

    pattern: str
    deed: Literal["answer", "refuse", "lose", "reset", "halve", "stall", "flip"]
    status: int = 503
    code: str = "SlowDown"
    headers: str = ""
    times: int = 1
    done: int = field(default=0, init=False)


class Misbehaving:
    """The proxy: `endpoint` to talk to, `misdeeds` to fill, `requests` that came by."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.partition(":")
        self.upstream = host, int(port)
        self.misdeeds: list[Misdeed] = []
        self.requests: list[str] = []
        self.over = threading.Event()
        self.endpoint = ""
        self._lock = threading.Lock()

    def take(self, line: str) -> Misdeed | None:
        """Note a request and return what shall happen to it."""
        with self._lock:
            self.requests.append(line)
            for misdeed in self.misdeeds:
                if misdeed.done < misdeed.times and re.match(misdeed.pattern, line):
                    misdeed.done += 1
                    return misdeed
        return None


@contextlib.contextmanager
def misbehaving(upstream: str) -> Iterator[Misbehaving]:
    """Run a proxy in front of `upstream` ("host:port")."""
    proxy = Misbehaving(upstream)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(20)
            with contextlib.suppress(OSError):
                _serve(proxy, self.request)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = False

    with Server(("127.0.0.1", 0), Handler) as server:
        proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.over.set()
            server.shutdown()
            thread.join()


def _serve(proxy: Misbehaving, client: socket.socket) -> None:
    head, body = _head(client)
    misdeed = proxy.take(head.split(b" HTTP/", 1)[0].decode())
    deed = misdeed.deed if misdeed else ""
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    length = int(found[1]) if found else 0
    if deed == "reset":
        _reset(client)
    elif deed == "stall":
        proxy.over.wait(20)
    elif misdeed and deed in ("answer", "refuse"):
        if deed == "answer":
            for _ in _pieces(client, body, length):
                pass
        xml = f"<Error><Code>{misdeed.code}</Code><Message>as told</Message></Error>".encode()
        client.sendall(
            f"HTTP/1.1 {misdeed.status} Told\r\n{misdeed.headers}Connection: close\r\n"
            f"Content-Length: {len(xml)}\r\n\r\n".encode()
            + (b"" if head.startswith(b"HEAD") else xml)
        )
    else:
        _forward(proxy, client, head, _pieces(client, body, length), deed)


def _forward(
    proxy: Misbehaving, client: socket.socket, head: bytes, body: Iterator[bytes], deed: str
) -> None:
    with socket.create_connection(proxy.upstream, timeout=20) as server:
        line, _, rest = head.partition(b"\r\n")
        server.sendall(line + b"\r\nConnection: close\r\n" + rest)
        for number, piece in enumerate(body):
            flip = deed == "flip" and number == 0
            server.sendall(bytes([piece[0] ^ 1]) + piece[1:] if flip else piece)
        left = _cut(server, client) if deed == "halve" else None
        while left is None or left > 0:
            got = server.recv(CHUNK if left is None else min(CHUNK, left))
            if not got:
                break
            if left is not None:
                left -= len(got)
            if deed != "lose":
                client.sendall(got)
    if deed == "lose":
        _reset(client)


def _cut(server: socket.socket, client: socket.socket) -> int:
    """Pass an answer's head on and return half of the length it promises."""
    head, body = _head(server)
    client.sendall(head)
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    half = int(found[1]) // 2 if found else 0
    client.sendall(body[:half])
    return half - len(body[:half])


def _head(sock: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        got = sock.recv(65536)
        if not got:
            raise ConnectionResetError
        data += got
    head, _, rest = data.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def _pieces(sock: socket.socket, first: bytes, length: int) -> Iterator[bytes]:
    if first:
        yield first
    left = length - len(first)
    while left > 0:
        got = sock.recv(min(CHUNK, left))
        if not got:
            raise ConnectionResetError
        left -= len(got)
        yield got


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
