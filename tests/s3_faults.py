"""A proxy in front of a real server that misbehaves once for a request that matches."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from tests.loopback import Server, read_head, reset
from tests.patience import PATIENCE

CHUNK = 1 << 18


@dataclass
class Misdeed:
    """What happens to requests whose request line matches `pattern`.

    Attributes:
        pattern: a regular expression, such as "PUT .*uploadId".
        deed: "answer" `status` and `code` instead of the server; "refuse" the same without taking
            the body; "lose" the server's answer, after it did what was asked; "reset" before it
            heard; "halve" its answer's body; "stall" without a word; "flip" a byte of the body;
            "cut" the connection after half of the body; "hold" it there until the client is gone;
            "late": as "reset", but the server hears after all when `late` is set; "call" `call`
            with the request line when the first piece of a body, or of the answer, has passed.
        times: how many requests; the others pass.
    """

    pattern: str
    deed: Literal[
        "answer", "refuse", "lose", "reset", "halve", "stall", "flip", "cut", "hold", "late", "call"
    ]
    status: int = 503
    code: str = "SlowDown"
    headers: str = ""
    times: int = 1
    call: Callable[[str], None] = print
    done: int = field(default=0, init=False)


@dataclass
class Body:
    """A request's body as it came by: bytes that were promised and that were received."""

    line: str
    length: int
    received: int = 0


class Misbehaving:
    """The proxy: `endpoint` to talk to, `misdeeds` to fill, `requests` and `bodies` that came by.

    Who takes it for an HTTP proxy reaches the server that is asked for, not `upstream`.
    """

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.partition(":")
        self.upstream = host, int(port)
        self.misdeeds: list[Misdeed] = []
        self.requests: list[str] = []
        self.bodies: list[Body] = []
        self.over = threading.Event()
        self.late = threading.Event()
        self.late_answers: list[str] = []
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
            self.request.settimeout(PATIENCE)
            with contextlib.suppress(OSError):
                _serve(proxy, self.request)

    with Server(("127.0.0.1", 0), Handler) as server:
        proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.over.set()
            proxy.late.set()
            server.shutdown()
            server.hang_up()
            thread.join()


def _serve(proxy: Misbehaving, client: socket.socket) -> None:
    head, body = _head(client)
    line = head.split(b" HTTP/", 1)[0].decode()
    misdeed = proxy.take(line)
    deed = misdeed.deed if misdeed else ""
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    length = int(found[1]) if found else 0
    pieces = _counted(proxy, Body(line, length), _pieces(client, body, length))
    if deed == "reset":
        reset(client)
    elif deed == "stall":
        proxy.over.wait(PATIENCE)
    elif deed in ("cut", "hold"):
        _half(proxy, client, head, _pieces(client, body, length // 2), deed)
    elif deed == "late":
        pieces = list(_pieces(client, body, length))
        reset(client)
        proxy.late.wait(PATIENCE)
        with _upstream(proxy, head) as server:
            proxy.late_answers.append(_ask(server, pieces))
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
        call = partial(misdeed.call, line) if misdeed and deed == "call" else None
        _forward(proxy, client, head, pieces, deed, call)


def _counted(proxy: Misbehaving, body: Body, pieces: Iterator[bytes]) -> Iterator[bytes]:
    proxy.bodies.append(body)
    for piece in pieces:
        body.received += len(piece)
        yield piece


def _forward(
    proxy: Misbehaving,
    client: socket.socket,
    head: bytes,
    body: Iterator[bytes],
    deed: str,
    call: Callable[[], None] | None,
) -> None:
    with _upstream(proxy, head) as server:
        for number, piece in enumerate(body):
            flip = deed == "flip" and number == 0
            server.sendall(bytes([piece[0] ^ 1]) + piece[1:] if flip else piece)
            call = call and call()
        left = _cut(server, client) if deed == "halve" else None
        while left is None or left > 0:
            got = server.recv(CHUNK if left is None else min(CHUNK, left))
            if not got:
                break
            if left is not None:
                left -= len(got)
            if deed != "lose":
                client.sendall(got)
            call = call and call()
    if deed == "lose":
        reset(client)


def _ask(server: socket.socket, pieces: list[bytes]) -> str:
    """Send a body; return the answer, "" if it was refused so early that the answer is lost."""
    data = b""
    with contextlib.suppress(OSError):
        for piece in pieces:
            server.sendall(piece)
        while got := server.recv(CHUNK):
            data += got
    return data.decode(errors="replace")


@contextlib.contextmanager
def _upstream(proxy: Misbehaving, head: bytes) -> Iterator[socket.socket]:
    """Connect to the server and send it the head of a request."""
    line, _, rest = head.partition(b"\r\n")
    host, port = proxy.upstream
    if asked := re.match(rb"(\w+ )http://([^/:]+):(\d+)", line):  # as an HTTP proxy is asked
        line, host, port = asked[1] + line[asked.end() :], asked[2].decode(), int(asked[3])
    with socket.create_connection((host, port), timeout=PATIENCE) as server:
        server.sendall(line + b"\r\nConnection: close\r\n" + rest)
        yield server


def _half(
    proxy: Misbehaving, client: socket.socket, head: bytes, half: Iterator[bytes], deed: str
) -> None:
    with _upstream(proxy, head) as server:
        for piece in half:
            server.sendall(piece)
        while deed == "hold" and client.recv(CHUNK):
            pass
    if deed == "cut":
        reset(client)


def _cut(server: socket.socket, client: socket.socket) -> int:
    """Pass an answer's head on and return half of the length it promises."""
    head, body = _head(server)
    client.sendall(head)
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    half = int(found[1]) // 2 if found else 0
    client.sendall(body[:half])
    return half - len(body[:half])


def _head(sock: socket.socket) -> tuple[bytes, bytes]:
    head, _, rest = read_head(sock).partition(b"\r\n\r\n")
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
