"""Raw HTTP servers on loopback, which behave as badly as a test wants."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tests.patience import PATIENCE

Serve = Callable[[socket.socket], None]
Start = Callable[[Serve], str]


class Server(socketserver.ThreadingTCPServer):
    """A thread for each connection; nobody waits for what a client has left open."""

    allow_reuse_address = True
    daemon_threads = False

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End all connections, so that the threads that read from them do."""
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def serving(serve: Serve, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server that gives each connection to `serve`; yields its URL."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            sock = self.request
            sock.settimeout(PATIENCE)
            # A client that gives up in the middle is what most of these tests are about.
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                if context:
                    sock = stack.enter_context(context.wrap_socket(sock, server_side=True))
                serve(sock)

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            scheme = "https" if context else "http"
            yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.hang_up()
            thread.join()


def read_head(sock: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        got = sock.recv(65536)
        if not got:
            raise ConnectionResetError
        head += got
    return head


def read_request(sock: socket.socket) -> tuple[bytes, bytes]:
    head, _, body = read_head(sock).partition(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    while len(body) < length:
        got = sock.recv(1 << 20)
        if not got:
            raise ConnectionResetError
        body += got
    return head, body


def answer(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def wait_gone(sock: socket.socket) -> None:
    """Hold the connection without a word until the client leaves."""
    with contextlib.suppress(OSError):
        while sock.recv(65536):
            pass
