"""The transport against real servers on loopback: pools, proxies, TLS, and no copies."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from tests.loopback import Start, answer, read_head, read_request, serving, wait_gone
from tests.patience import PATIENCE
from tierstore.errors import (
    AccessError,
    UnreachableError,
)
from tierstore.http import Deadlines, Transport
from tierstore.http.transport import ERROR_BODY

PATIENT = Deadlines(connect=PATIENCE, stall=PATIENCE, total=PATIENCE)

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def start() -> Iterator[Start]:
    with contextlib.ExitStack() as stack:
        yield lambda serve: stack.enter_context(serving(serve))


@pytest.fixture
def transport() -> Iterator[Transport]:
    with contextlib.closing(Transport(pool_size=2, deadlines=PATIENT)) as transport:
        yield transport


def test_body_and_answer_travel_between_memories(start: Start, transport: Transport) -> None:
    seen = []

    def echo(sock: socket.socket) -> None:
        head, body = read_request(sock)
        seen.append(head)
        sock.sendall(answer(body, headers="X-Thing: 7\r\n"))

    data = bytes(range(256)) * 20_000
    into = bytearray(len(data))
    got = transport.request(
        "PUT", f"{start(echo)}/a%20b?x=1", headers={"X-A": "b"}, body=data, into=[memoryview(into)]
    )
    assert got.status == 200
    assert got.body == b""
    assert got.headers["x-thing"] == "7"
    assert into == data
    assert seen[0].startswith(b"PUT /a%20b?x=1 HTTP/1.1\r\n")
    assert b"\r\nX-A: b" in seen[0]


def test_every_request_says_who_asks(start: Start, transport: Transport) -> None:
    seen = []

    def serve(sock: socket.socket) -> None:
        for _ in range(2):
            seen.append(read_head(sock))
            sock.sendall(answer(b""))

    url = start(serve)
    for _ in range(2):
        transport.request("GET", url, headers={})
    assert [head.count(b"\r\nUser-Agent: tierstore\r\n") for head in seen] == [1, 1]


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
        transport.request("PUT", url, headers={}, body=memoryview(data), into=[memoryview(into)])
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
    parents = transport._routes._pools
    monkeypatch.setattr("os.getpid", lambda: -1)  # as the child would see itself
    for _ in range(2):
        transport.request("GET", url, headers={})
    assert len(connections) == 2
    for pool in parents.values():
        pool.retire()
    transport.close()


def test_error_answer_is_returned_and_into_left_alone(start: Start, transport: Transport) -> None:
    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer(b"no" * ERROR_BODY, "404 Not Found"))
        wait_gone(sock)

    into = bytearray(4)
    got = transport.request("GET", start(serve), headers={}, into=[memoryview(into)])
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
    for parts in ([8], [2, 4, 0, 2]):
        views = [memoryview(into)[sum(parts[:i]) : sum(parts[: i + 1])] for i in range(len(parts))]
        transport.request("GET", start(serve), headers={}, into=views)
        assert into == b"abcdefgh"
        into[:] = bytes(8)


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
    transport = Transport(pool_size=1, deadlines=PATIENT, ca_bundle=str(certificate.cert))
    with contextlib.closing(transport), serving(_echo, _tls(certificate)) as url:
        transport.request("PUT", url, headers={}, body=data, into=[memoryview(into)])
        transport.close()
    assert into == data


def test_tls_of_an_unknown_authority(certificate: Any, transport: Transport) -> None:
    with serving(_echo, _tls(certificate)) as url:
        with pytest.raises(AccessError, match="ca_bundle"):
            transport.request("GET", url, headers={})


def test_tls_unverified_is_logged_once(certificate: Any, caplog: pytest.LogCaptureFixture) -> None:
    transport = Transport(pool_size=1, deadlines=PATIENT, verify=False)
    with contextlib.closing(transport), serving(_echo, _tls(certificate)) as url:
        for _ in range(2):
            assert transport.request("PUT", url, headers={}, body=b"x").body == b"x"
        transport.close()
    assert [r for r in caplog.records if r.name.startswith("tierstore.http")] == caplog.records
    assert len(caplog.records) == 1


def test_tls_early_refusal_is_heard(certificate: Any) -> None:
    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(answer(b"", "403 Forbidden"))
        heard.wait(PATIENCE)

    heard, asks = threading.Event(), replace(PATIENT, stall=1.0)  # a stall makes it listen
    transport = Transport(pool_size=1, deadlines=asks, ca_bundle=str(certificate.cert))
    with contextlib.closing(transport), serving(serve, _tls(certificate)) as url:
        try:
            assert transport.request("PUT", url, headers={}, body=bytes(64 << 20)).status == 403
        finally:
            heard.set()
