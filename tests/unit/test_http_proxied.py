"""The same good and bad servers behind a proxy: one that passes on, and one that opens tunnels."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.forwarding import Forwarding, forwarding
from tests.loopback import Start, answer, read_request, serving, wait_gone
from tests.patience import PATIENCE
from tests.unit import test_http
from tests.unit.test_http import (  # noqa: F401 - they run here with the fixtures of this module
    test_chunked_answer_fills_the_buffer,
    test_connections_are_kept_alive_and_bounded,
    test_error_answer_is_returned_and_into_left_alone,
    test_every_request_says_who_asks,
    test_redirect_is_not_followed,
)
from tests.unit.test_http_faults import (  # noqa: F401
    PATIENT,
    STALL,
    test_a_request_may_have_a_total_of_its_own,
    test_answer_of_another_length,
    test_answer_stalls_in_the_middle,
    test_half_a_body,
    test_no_answer_at_all,
    test_no_http_at_all,
    test_reset_while_receiving,
    test_reset_while_sending,
    test_server_stops_receiving,
    test_slow_drip_ends_at_the_total_deadline,
)
from tierstore.errors import AccessError, DeadlineError, StorageError, UnreachableError
from tierstore.http import Transport

pytestmark = pytest.mark.usefixtures("no_leaks")
WAYS = ["plain", "tunnel", "plain over TLS", "tunnel over TLS"]


def _context(certificate: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert, certificate.key)
    return context


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def proxy(way: str, certificate: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forwarding]:
    with forwarding(_context(certificate) if way.endswith("TLS") else None) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.url.replace("//", "//user:hidden@"))
            monkeypatch.delenv(name.lower(), raising=False)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "")
        yield proxy


@pytest.fixture
def start(way: str, proxy: Forwarding, certificate: Any) -> Iterator[Start]:
    context = _context(certificate) if way.startswith("tunnel") else None
    with contextlib.ExitStack() as stack:
        yield lambda serve: stack.enter_context(serving(serve, context))


@pytest.fixture
def transport(proxy: Forwarding, certificate: Any) -> Iterator[Transport]:
    made = Transport(pool_size=2, deadlines=PATIENT, ca_bundle=str(certificate.cert))
    with contextlib.closing(made) as transport:
        yield transport


def _only(*ways: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("way", ways, indirect=True)


tunnels = _only("tunnel", "tunnel over TLS")


@_only("plain", "tunnel", "plain over TLS")  # by TLS within TLS urllib3 copies all
def test_nothing_is_copied(start: Start, transport: Transport) -> None:
    test_http.test_nothing_is_copied(start, transport)


def _echo(sock: socket.socket) -> None:
    while True:
        _, body = read_request(sock)
        sock.sendall(answer(body))


def test_body_and_answer_travel_between_memories(
    start: Start, transport: Transport, proxy: Forwarding, way: str
) -> None:
    seen: list[bytes] = []

    def serve(sock: socket.socket) -> None:
        while True:
            head, body = read_request(sock)
            seen.append(head)
            sock.sendall(answer(body))

    data, url = bytes(range(256)) * 20_000, start(serve)
    for _ in range(3):
        into = bytearray(len(data))
        transport.request("PUT", f"{url}/a%20b?x=1", headers={}, body=data, into=[memoryview(into)])
        assert into == data
    pieces = (data[at : at + 100_000] for at in range(0, len(data), 100_000))
    said, into = {"Content-Length": str(len(data))}, bytearray(len(data))
    transport.request("PUT", url, headers=said, body=pieces, into=[memoryview(into)])
    assert into == data
    assert len(proxy.heads) == 1  # of one connection, which was kept
    assert proxy.heads[0].lower().count(b"\r\nproxy-authorization: basic ") == 1
    told = b"proxy-authorization" in b"".join(seen).lower()
    if way.startswith("tunnel"):
        server = url.removeprefix("https://").encode()
        assert proxy.heads[0].startswith(b"CONNECT %s HTTP/1.1\r\nHost: %s\r\n" % (server, server))
        assert seen[0].startswith(b"PUT /a%20b?x=1 HTTP/1.1\r\n")
        assert not told
    else:
        assert seen[0].startswith(b"PUT %s/a%%20b?x=1 HTTP/1.1\r\n" % url.encode())
        assert told  # as it must: it is this proxy that passes all on


def test_early_refusal_is_heard(start: Start, transport: Transport) -> None:
    heard = threading.Event()

    def serve(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(answer(b"full", "507 Insufficient Storage"))
        heard.wait(PATIENCE)  # it reads no more

    url, transport.deadlines = start(serve), replace(PATIENT, stall=1.0)  # TLS: a stall listens
    got = transport.request("PUT", url, headers={}, body=bytes(64 << 20))
    heard.set()
    assert (got.status, got.body) == (507, b"full")


@tunnels
@pytest.mark.parametrize(
    ("says", "error", "told"),
    [
        (b"HTTP/1.1 407 Authentication Required\r\n\r\n", UnreachableError, "407 to CONNECT"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", UnreachableError, "302 to CONNECT"),
        (b"HTTP/1.1 502 Bad\r\nContent-Length: 9\r\n\r\nno route!", UnreachableError, "502"),
        (b"HTTP/1.1 200 OK\r\n\r\nmore", UnreachableError, "through the proxy"),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", UnreachableError, "BadStatusLine"),
        (b"HTTP/1.1 200 OK\r\nX: y", UnreachableError, "RemoteDisconnected"),
        (b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", StorageError, "headers cannot be read"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 20, StorageError, "without end"),
        (b"", UnreachableError, "RemoteDisconnected"),
    ],
)
def test_a_proxy_that_opens_no_tunnel(
    start: Start,
    transport: Transport,
    proxy: Forwarding,
    says: bytes,
    error: type[StorageError],
    told: str,
) -> None:
    proxy.says, proxy.opens = says, False
    with pytest.raises(error, match=told) as caught:
        transport.request("GET", f"{start(_echo)}/k?secret=hunter2", headers={})
    for secret in ("hidden", "hunter2", "dXNlcjpoaWRkZW4"):
        assert secret not in str(caught.value)


@tunnels
@pytest.mark.parametrize(
    "headers",
    [
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Connection: close\r\nContent-Length: 0\r\n",
    ],
)
def test_what_a_proxy_says_of_a_tunnel_has_no_body(
    start: Start, transport: Transport, proxy: Forwarding, headers: bytes
) -> None:
    """Whatever its headers say (RFC 9110, section 9.3.6)."""
    proxy.says = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 299 fine\r\n" + headers + b"\r\n"
    url = start(_echo)
    for body in (b"first", b"second"):
        assert transport.request("PUT", url, headers={}, body=body).body == body
    assert len(proxy.heads) == 1


@tunnels
def test_a_proxy_that_never_answers(start: Start, transport: Transport, proxy: Forwarding) -> None:
    url, proxy.acts, transport.deadlines = start(_echo), wait_gone, STALL
    with pytest.raises(DeadlineError, match=r"no byte moved for 0\.3 s"):
        transport.request("GET", url, headers={})


@tunnels
def test_a_server_behind_a_tunnel_that_says_nothing(
    transport: Transport, proxy: Forwarding
) -> None:
    """Its handshake is a part of connecting."""
    transport.deadlines = replace(PATIENT, connect=0.3)
    with serving(wait_gone) as url:
        with pytest.raises(DeadlineError, match=r"no connection to 127.* in 0\.3 s"):
            transport.request("GET", url.replace("http:", "https:"), headers={})
    assert len(proxy.heads) == 1


def test_a_server_that_is_none(proxy: Forwarding, transport: Transport, way: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        scheme = "https" if way.startswith("tunnel") else "http"
        url = f"{scheme}://127.0.0.1:{taken.getsockname()[1]}/k"
        with pytest.raises(UnreachableError):
            transport.request("GET", url, headers={})
    assert len(proxy.heads) == 1


def test_a_proxy_that_is_none(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{taken.getsockname()[1]}")
        scheme = "https" if way.startswith("tunnel") else "http"
        with pytest.raises(UnreachableError, match="through the proxy: Connection refused"):
            transport.request("GET", f"{scheme}://example.invalid/k", headers={})


@tunnels
def test_a_certificate_is_the_servers_own(
    start: Start, transport: Transport, proxy: Forwarding
) -> None:
    """It is checked against the name that was asked for, not against the proxy's."""
    url = start(_echo).replace("127.0.0.1", "other.invalid")
    proxy.elsewhere = "127.0.0.1"
    with pytest.raises(AccessError, match=r"other\.invalid"):
        transport.request("GET", url, headers={})


@_only("tunnel")
@pytest.mark.usefixtures("proxy")
def test_nobody_is_trusted_through_a_tunnel(start: Start) -> None:
    with contextlib.closing(Transport(pool_size=1, deadlines=PATIENT)) as transport:
        with pytest.raises(AccessError, match="ca_bundle"):
            transport.request("GET", start(_echo), headers={})


@_only("tunnel")
def test_many_servers_keep_few_connections(
    start: Start, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierstore.http.routes._MOST", 3)
    urls = [start(_echo) for _ in range(5)]
    for _ in range(2):
        for url in (*urls, urls[0]):
            assert transport.request("PUT", url, headers={}, body=b"x").body == b"x"
    pools = transport._routes._pools
    assert len(pools) == len(transport._routes._routes) == 3
    kept = {way.tunnel.authority for way in pools if way.tunnel}
    assert kept == {url.removeprefix("https://") for url in (urls[0], *urls[3:])}


def test_a_pool_that_was_retired_still_lends(start: Start, transport: Transport) -> None:
    """A request may have found it just before; its connection is then not kept."""
    url = start(_echo)
    pool = transport._routes.find(url).pool
    transport.request("PUT", url, headers={}, body=b"x")
    pool.retire()
    connection = pool.lend(PATIENCE)
    assert connection is not None
    assert connection.sock is None
    pool.give_back(connection)
    assert transport.request("PUT", url, headers={}, body=b"y").body == b"y"
