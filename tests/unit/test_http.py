"""The transport against real servers on loopback that behave badly on purpose."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tierstore.errors import (
    AccessError,
    ConfigError,
    DeadlineError,
    StorageError,
    TruncatedFileError,
    UnreachableError,
)
from tierstore.http import ERROR_BODY, Deadlines, Transport

QUICK = Deadlines(connect=2.0, stall=0.3, total=1.0)
Serve = Callable[[socket.socket], None]
Start = Callable[[Serve], str]

pytestmark = pytest.mark.usefixtures("no_leaks")


@contextlib.contextmanager
def serving(serve: Serve, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server that gives each connection to `serve`; yields its URL."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            sock = self.request
            sock.settimeout(5)
            # A client that gives up in the middle is what most of these tests are about.
            with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
                if context:
                    sock = stack.enter_context(context.wrap_socket(sock, server_side=True))
                serve(sock)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            scheme = "https" if context else "http"
            yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def start() -> Iterator[Start]:
    with contextlib.ExitStack() as stack:
        yield lambda serve: stack.enter_context(serving(serve))


@pytest.fixture
def transport() -> Iterator[Transport]:
    with contextlib.closing(Transport(pool_size=2, deadlines=QUICK)) as transport:
        yield transport


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


# What works


def test_body_and_answer_travel_between_memories(start: Start, transport: Transport) -> None:
    seen = []

    def echo(sock: socket.socket) -> None:
        head, body = read_request(sock)
        seen.append(head)
        sock.sendall(answer(body, headers="X-Thing: 7\r\n"))

    data = bytes(range(256)) * 20_000
    into = bytearray(len(data))
    got = transport.request(
        "PUT", f"{start(echo)}/a%20b?x=1", headers={"X-A": "b"}, body=data, into=memoryview(into)
    )
    assert got.status == 200
    assert got.body == b""
    assert got.headers["x-thing"] == "7"
    assert into == data
    assert seen[0].startswith(b"PUT /a%20b?x=1 HTTP/1.1\r\n")
    assert b"\r\nX-A: b" in seen[0]


def test_nothing_is_copied(start: Start, transport: Transport) -> None:
    import tracemalloc

    size = 32 << 20

    def echo(sock: socket.socket) -> None:
        left = size - len(read_head(sock).partition(b"\r\n\r\n")[2])
        view = memoryview(bytearray(1 << 16))
        while left and (got := sock.recv_into(view)):
            left -= got
        sock.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
        for _ in range(size >> 16):
            sock.sendall(view)

    url = start(echo)
    data, into = bytearray(size), bytearray(size)
    tracemalloc.start()
    try:
        transport.request("PUT", url, headers={}, body=memoryview(data), into=memoryview(into))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20


def test_connections_are_kept_alive_and_bounded(start: Start, transport: Transport) -> None:
    connections, inside, most = [], [], []

    def serve(sock: socket.socket) -> None:
        connections.append(sock)
        with contextlib.suppress(ConnectionResetError):
            while True:
                read_request(sock)
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.01)
                inside.pop()
                sock.sendall(answer(b"ok"))

    url = start(serve)
    with ThreadPoolExecutor(6) as pool:
        bodies = list(pool.map(lambda _: transport.request("GET", url, headers={}).body, range(24)))
    transport.close()
    assert bodies == [b"ok"] * 24
    assert len(connections) <= 2
    assert max(most) <= 2


def test_a_fork_does_not_share_its_parents_connections(
    start: Start, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = []

    def serve(sock: socket.socket) -> None:
        connections.append(sock)
        while True:
            read_request(sock)
            sock.sendall(answer(b""))

    url = start(serve)
    for _ in range(2):
        transport.request("GET", url, headers={})
    parents = transport._managers
    monkeypatch.setattr("os.getpid", lambda: -1)  # as the child would see itself
    for _ in range(2):
        transport.request("GET", url, headers={})
    assert len(connections) == 2
    for manager in parents.values():
        manager.clear()
    transport.close()


def test_error_answer_is_returned_and_into_left_alone(start: Start, transport: Transport) -> None:
    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer(b"no" * ERROR_BODY, "404 Not Found"))
        wait_gone(sock)

    into = bytearray(4)
    got = transport.request("GET", start(serve), headers={}, into=memoryview(into))
    assert (got.status, len(got.body)) == (404, ERROR_BODY)
    assert into == bytes(4)


def test_chunked_answer_fills_the_buffer(start: Start, transport: Transport) -> None:
    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (b"abc", b"defgh"):
            sock.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
        sock.sendall(b"0\r\n\r\n")

    into = bytearray(8)
    transport.request("GET", start(serve), headers={}, into=memoryview(into))
    assert into == b"abcdefgh"


def test_redirect_is_not_followed(start: Start, transport: Transport) -> None:
    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer(b"", "307 Temporary Redirect", "Location: http://127.0.0.1:1/x\r\n"))

    got = transport.request("PUT", start(serve), headers={}, body=b"x", ok=(307,))
    assert got.headers["location"] == "http://127.0.0.1:1/x"


@pytest.mark.parametrize("credentials", ["", "user:hidden@"])
def test_proxy_from_the_environment(
    start: Start, transport: Transport, monkeypatch: pytest.MonkeyPatch, credentials: str
) -> None:
    seen = []

    def proxy(sock: socket.socket) -> None:
        seen.append(read_request(sock)[0])
        sock.sendall(answer(b"by proxy"))

    monkeypatch.setenv("HTTP_PROXY", start(proxy).replace("//", f"//{credentials}"))
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    got = transport.request("GET", "http://example.invalid/k", headers={})
    assert got.body == b"by proxy"
    assert seen[0].startswith(b"GET http://example.invalid/k HTTP/1.1")
    assert (b"proxy-authorization: basic" in seen[0].lower()) is bool(credentials)


def test_tls_tunnel_through_a_proxy_that_refuses(
    start: Start, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def proxy(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

    monkeypatch.setenv("HTTPS_PROXY", start(proxy).replace("//", "//user:hidden@"))
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(UnreachableError, match="through the proxy") as caught:
        transport.request("GET", "https://example.invalid/k", headers={})
    assert "hidden" not in str(caught.value)


# What goes wrong


def test_nobody_listens(transport: Transport) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/k?secret=hunter2"
        with pytest.raises(UnreachableError, match="refused") as caught:
            transport.request("GET", url, headers={})
    assert "hunter2" not in str(caught.value)
    assert "/k" in str(caught.value)


def test_unknown_host(transport: Transport) -> None:
    with pytest.raises(UnreachableError, match=r"nosuchhost\.invalid"):
        transport.request("GET", "http://nosuchhost.invalid/k", headers={})


def test_connecting_takes_too_long() -> None:
    # A listener whose queue is full: the kernel drops further SYNs.
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        deadlines = Deadlines(connect=0.3, stall=5, total=10)
        transport = stack.enter_context(
            contextlib.closing(Transport(pool_size=1, deadlines=deadlines))
        )
        begun = time.monotonic()
        with pytest.raises(DeadlineError, match=r"no connection in 0\.3 s"):
            transport.request("GET", f"http://127.0.0.1:{full.getsockname()[1]}/", headers={})
        assert time.monotonic() - begun < 2


def test_no_answer_at_all(start: Start, transport: Transport) -> None:
    def serve(sock: socket.socket) -> None:
        read_request(sock)
        wait_gone(sock)

    begun = time.monotonic()
    with pytest.raises(DeadlineError, match=r"no byte moved for 0\.3 s"):
        transport.request("GET", start(serve), headers={})
    assert 0.25 < time.monotonic() - begun < 0.9


def test_server_stops_receiving(start: Start, transport: Transport) -> None:
    gone = threading.Event()

    def serve(sock: socket.socket) -> None:
        read_head(sock)
        gone.wait(5)

    with pytest.raises(DeadlineError, match="no byte moved"):
        transport.request("PUT", start(serve), headers={}, body=bytes(64 << 20))
    gone.set()


def test_answer_stalls_in_the_middle(start: Start, transport: Transport) -> None:
    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer(bytes(1000))[:-500])
        wait_gone(sock)

    with pytest.raises(DeadlineError, match="no byte moved"):
        transport.request("GET", start(serve), headers={}, into=memoryview(bytearray(1000)))


@pytest.mark.parametrize("where", ["head", "body"])
def test_slow_drip_ends_at_the_total_deadline(
    start: Start, transport: Transport, where: str
) -> None:
    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n")
        if where == "body":
            sock.sendall(b"Content-Length: 100000\r\n\r\n")
        while True:
            sock.sendall(b"x")
            time.sleep(0.05)

    begun = time.monotonic()
    with pytest.raises(DeadlineError, match="not done in 1 s"):
        transport.request("GET", start(serve), headers={}, into=memoryview(bytearray(100_000)))
    assert time.monotonic() - begun < 2


def test_slow_but_steady_sending_is_no_stall(start: Start) -> None:
    """A whole part may take longer than the stall deadline, as long as bytes move."""

    def serve(sock: socket.socket) -> None:
        received = len(read_head(sock).partition(b"\r\n\r\n")[2])
        while received < size and (got := len(sock.recv(1 << 20))):
            time.sleep(0.1)
            received += got
        sock.sendall(answer(b""))

    size = 24 << 20

    deadlines = Deadlines(connect=1, stall=1.5, total=30)
    with contextlib.closing(Transport(pool_size=1, deadlines=deadlines)) as transport:
        begun = time.monotonic()
        transport.request("PUT", start(serve), headers={}, body=bytes(size))
        assert time.monotonic() - begun > 2


def test_half_a_body(start: Start, transport: Transport) -> None:
    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer(bytes(1000))[:-400])

    url = start(serve)
    with pytest.raises(UnreachableError, match="600 of 1000 bytes"):
        transport.request("GET", url, headers={}, into=memoryview(bytearray(1000)))
    with pytest.raises(UnreachableError):
        transport.request("GET", url, headers={})


@pytest.mark.parametrize("size", [999, 1001])
def test_answer_of_another_length(start: Start, transport: Transport, size: int) -> None:
    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer(bytes(size)))

    with pytest.raises(TruncatedFileError, match=f"{size} bytes where 1000"):
        transport.request("GET", start(serve), headers={}, into=memoryview(bytearray(1000)))


def test_reset_while_receiving(start: Start, transport: Transport) -> None:
    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer(bytes(1000))[:-400])
        time.sleep(0.05)
        reset(sock)

    with pytest.raises(UnreachableError):
        transport.request("GET", start(serve), headers={}, into=memoryview(bytearray(1000)))


def test_reset_while_sending(start: Start, transport: Transport) -> None:
    def serve(sock: socket.socket) -> None:
        read_head(sock)
        reset(sock)

    with pytest.raises(UnreachableError):
        transport.request("PUT", start(serve), headers={}, body=bytes(64 << 20))


def test_no_http_at_all(start: Start, transport: Transport) -> None:
    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"220 smtp ready\r\n")

    with pytest.raises(UnreachableError, match="BadStatusLine"):
        transport.request("GET", start(serve), headers={})


@pytest.mark.parametrize("stays", [True, False], ids=["stays", "leaves"])
def test_early_refusal_is_heard_while_sending(
    start: Start, transport: Transport, *, stays: bool
) -> None:
    received = []

    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(answer(b"slow down", "503 Slow Down", "Retry-After: 3\r\n"))
        if stays:
            with contextlib.suppress(OSError):
                while got := len(sock.recv(1 << 20)):
                    received.append(got)

    got = transport.request("PUT", start(serve), headers={}, body=bytes(128 << 20))
    assert (got.status, got.body, got.headers["retry-after"]) == (503, b"slow down", "3")
    transport.close()
    assert sum(received) < 64 << 20, "the rest of the body was sent in vain"


def test_early_success_is_none(start: Start, transport: Transport) -> None:
    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(answer(b""))
        wait_gone(sock)

    with pytest.raises(UnreachableError, match="before the body was sent"):
        transport.request("PUT", start(serve), headers={}, body=bytes(128 << 20))


def test_cut_connection_is_not_used_again(start: Start, transport: Transport) -> None:
    """What is left of a half-sent body must not be read as the next request."""
    connections = []

    def serve(sock: socket.socket) -> None:
        connections.append(sock)
        read_head(sock)
        sock.sendall(answer(b"", "403 Forbidden"))
        wait_gone(sock)

    url = start(serve)
    for _ in range(2):
        assert transport.request("PUT", url, headers={}, body=bytes(128 << 20)).status == 403
    assert len(connections) == 2


def test_waiting_for_a_connection_has_a_deadline(start: Start) -> None:
    free = threading.Event()

    def serve(sock: socket.socket) -> None:
        read_request(sock)
        free.wait(5)
        sock.sendall(answer(b""))

    url = start(serve)
    patient = Deadlines(connect=1, stall=5, total=5)
    with contextlib.closing(Transport(pool_size=1, deadlines=patient)) as transport:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(transport.request, "GET", url, headers={})
            time.sleep(0.05)
            transport.deadlines = QUICK
            with pytest.raises(DeadlineError, match="no connection became free in"):
                transport.request("GET", url, headers={})
            free.set()
            assert first.result().status == 200


def test_authorities_that_are_none(tmp_path: Any) -> None:
    (tmp_path / "empty.pem").write_text("nothing here")
    for name in ("empty.pem", "missing.pem"):
        with pytest.raises(ConfigError, match=name):
            Transport(pool_size=1, ca_bundle=str(tmp_path / name))


def test_closed_transport_says_so(transport: Transport) -> None:
    transport.close()
    transport.close()
    with pytest.raises(StorageError, match="closed"):
        transport.request("GET", "http://127.0.0.1:1/", headers={})


# TLS


def _tls(certificate: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert, certificate.key)
    return context


def _echo(sock: socket.socket) -> None:
    _, body = read_request(sock)
    sock.sendall(answer(body))


def test_tls_with_its_own_authority(certificate: Any) -> None:
    data, into = bytes(range(256)) * 8192, bytearray(256 * 8192)
    transport = Transport(pool_size=1, deadlines=QUICK, ca_bundle=str(certificate.cert))
    with contextlib.closing(transport), serving(_echo, _tls(certificate)) as url:
        transport.request("PUT", url, headers={}, body=data, into=memoryview(into))
        transport.close()
    assert into == data


def test_tls_of_an_unknown_authority(certificate: Any, transport: Transport) -> None:
    with serving(_echo, _tls(certificate)) as url:
        with pytest.raises(AccessError, match="ca_bundle"):
            transport.request("GET", url, headers={})


def test_tls_unverified_is_logged_once(certificate: Any, caplog: pytest.LogCaptureFixture) -> None:
    transport = Transport(pool_size=1, deadlines=QUICK, verify=False)
    with contextlib.closing(transport), serving(_echo, _tls(certificate)) as url:
        for _ in range(2):
            assert transport.request("PUT", url, headers={}, body=b"x").body == b"x"
        transport.close()
    assert [r for r in caplog.records if r.name == "tierstore.http"] == caplog.records
    assert len(caplog.records) == 1


def test_tls_early_refusal_is_heard(certificate: Any) -> None:
    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(answer(b"", "403 Forbidden"))
        time.sleep(1)

    transport = Transport(pool_size=1, deadlines=QUICK, ca_bundle=str(certificate.cert))
    with contextlib.closing(transport), serving(serve, _tls(certificate)) as url:
        assert transport.request("PUT", url, headers={}, body=bytes(64 << 20)).status == 403
