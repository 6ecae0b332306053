"""The transport against servers that stall, drip, reset, lie and refuse early."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from tests.loopback import Start, answer, read_head, read_request, reset, serving, wait_gone
from tests.patience import PATIENCE
from tierstore.errors import (
    ConfigError,
    DeadlineError,
    StorageError,
    TruncatedFileError,
    UnreachableError,
)
from tierstore.http import Deadlines, Transport

PATIENT = Deadlines(connect=PATIENCE, stall=PATIENCE, total=PATIENCE)
STALL, TOTAL = replace(PATIENT, stall=0.3), replace(PATIENT, total=1.0)

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def start() -> Iterator[Start]:
    with contextlib.ExitStack() as stack:
        yield lambda serve: stack.enter_context(serving(serve))


@pytest.fixture
def transport() -> Iterator[Transport]:
    with contextlib.closing(Transport(pool_size=2, deadlines=PATIENT)) as transport:
        yield transport


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
        deadlines = replace(PATIENT, connect=0.3)
        transport = stack.enter_context(
            contextlib.closing(Transport(pool_size=1, deadlines=deadlines))
        )
        with pytest.raises(DeadlineError, match=r"no connection to .* in 0\.3 s"):
            transport.request("GET", f"http://127.0.0.1:{full.getsockname()[1]}/", headers={})


def test_no_answer_at_all(start: Start, transport: Transport) -> None:
    def serve(sock: socket.socket) -> None:
        read_request(sock)
        wait_gone(sock)

    url, transport.deadlines = start(serve), STALL
    begun = time.monotonic()
    with pytest.raises(DeadlineError, match=r"no byte moved for 0\.3 s"):
        transport.request("GET", url, headers={})
    assert time.monotonic() - begun > 0.25


def test_server_stops_receiving(start: Start, transport: Transport) -> None:
    gone = threading.Event()

    def serve(sock: socket.socket) -> None:
        read_head(sock)
        gone.wait(PATIENCE)

    url, transport.deadlines = start(serve), STALL
    try:
        with pytest.raises(DeadlineError, match="no byte moved"):
            transport.request("PUT", url, headers={}, body=bytes(64 << 20))
    finally:
        gone.set()


@pytest.mark.parametrize("size", [1000, 4 << 20])
def test_answer_stalls_in_the_middle(start: Start, transport: Transport, size: int) -> None:
    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer(bytes(size))[: -size // 2])
        wait_gone(sock)

    url, transport.deadlines = start(serve), STALL
    with pytest.raises(DeadlineError, match="no byte moved"):
        transport.request("GET", url, headers={}, into=[memoryview(bytearray(size))])


@pytest.mark.parametrize("drips", [0, 8])
def test_a_large_answer_that_comes_in_drips_is_no_stall(
    start: Start, transport: Transport, drips: int
) -> None:
    """A large body is waited for in lumps, but less than a lump still counts as progress."""
    body = bytes(range(256)) * (1 << 11)

    def serve(sock: socket.socket) -> None:
        for some in (drips, 0, 0):
            read_request(sock)
            sock.sendall(answer(body)[: -len(body)])
            time.sleep(0.08)
            for at in range(some):
                sock.sendall(body[at * 1000 : at * 1000 + 1000])
                time.sleep(0.3)  # all of them for longer than a stall
            sock.sendall(body[some * 1000 :])
        read_request(sock)
        sock.sendall(answer(b"at once"))

    url, transport.deadlines = start(serve), replace(PATIENT, stall=2.0)
    for _ in range(3):
        received = bytearray(len(body))
        transport.request("GET", url, headers={}, into=[memoryview(received)])
        assert received == body
    # The connection wakes for any byte again.
    assert transport.request("GET", url, headers={}).body == b"at once"


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

    url, transport.deadlines = start(serve), TOTAL
    with pytest.raises(DeadlineError, match="not done in 1 s"):
        transport.request("GET", url, headers={}, into=[memoryview(bytearray(100_000))])


def test_a_request_may_have_a_total_of_its_own(start: Start, transport: Transport) -> None:
    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 24\r\n\r\n")
        for _ in range(24):
            sock.sendall(b"x")
            time.sleep(0.05)

    url, into, transport.deadlines = start(serve), bytearray(24), TOTAL
    transport.request("GET", url, headers={}, into=[memoryview(into)], total=PATIENCE)
    assert into == b"x" * 24
    with pytest.raises(DeadlineError, match=r"not done in 0\.1 s"):
        transport.request("GET", url, headers={}, into=[memoryview(into)], total=0.1)


def test_slow_but_steady_sending_is_no_stall(start: Start) -> None:
    """A whole part may take longer than the stall deadline, as long as bytes move."""

    def serve(sock: socket.socket) -> None:
        received = len(read_head(sock).partition(b"\r\n\r\n")[2])
        while received < size:
            # Whole MiBs: a sender is woken only once a good part of its buffer is free.
            wanted = min(1 << 20, size - received)
            if not (got := len(sock.recv(wanted, socket.MSG_WAITALL))):
                return
            received += got
            time.sleep(0.1)
        sock.sendall(answer(b""))

    size = 40 << 20

    deadlines = replace(PATIENT, stall=3)
    with contextlib.closing(Transport(pool_size=1, deadlines=deadlines)) as transport:
        begun = time.monotonic()
        transport.request("PUT", start(serve), headers={}, body=bytes(size))
        assert time.monotonic() - begun > deadlines.stall


def test_half_a_body(start: Start, transport: Transport) -> None:
    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer(bytes(1000))[:-400])

    url = start(serve)
    with pytest.raises(UnreachableError, match="600 of 1000 bytes"):
        transport.request("GET", url, headers={}, into=[memoryview(bytearray(1000))])
    with pytest.raises(UnreachableError):
        transport.request("GET", url, headers={})


@pytest.mark.parametrize("size", [999, 1001])
def test_answer_of_another_length(start: Start, transport: Transport, size: int) -> None:
    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer(bytes(size)))

    url = start(serve)
    with pytest.raises(TruncatedFileError, match=f"{size} bytes where 1000"):
        transport.request("GET", url, headers={}, into=[memoryview(bytearray(1000))])


def test_reset_while_receiving(start: Start, transport: Transport) -> None:
    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(answer(bytes(1000))[:-400])
        time.sleep(0.05)
        reset(sock)

    url = start(serve)
    with pytest.raises(UnreachableError):
        transport.request("GET", url, headers={}, into=[memoryview(bytearray(1000))])


def test_reset_while_sending(start: Start, transport: Transport) -> None:
    def serve(sock: socket.socket) -> None:
        read_head(sock)
        reset(sock)

    url = start(serve)
    with pytest.raises(UnreachableError):
        transport.request("PUT", url, headers={}, body=bytes(64 << 20))


def test_no_http_at_all(start: Start, transport: Transport) -> None:
    def serve(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"220 smtp ready\r\n")

    url = start(serve)
    with pytest.raises(UnreachableError, match="BadStatusLine"):
        transport.request("GET", url, headers={})


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

    url = start(serve)
    with pytest.raises(UnreachableError, match="before the body was sent"):
        transport.request("PUT", url, headers={}, body=bytes(128 << 20))


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
    asked, free = threading.Event(), threading.Event()

    def serve(sock: socket.socket) -> None:
        read_request(sock)
        asked.set()
        free.wait(PATIENCE)
        sock.sendall(answer(b""))

    url = start(serve)
    with contextlib.closing(Transport(pool_size=1, deadlines=PATIENT)) as transport:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(transport.request, "GET", url, headers={})
            assert asked.wait(PATIENCE)
            transport.deadlines = TOTAL
            try:
                with pytest.raises(DeadlineError, match="no connection became free in 1 s"):
                    transport.request("GET", url, headers={})
            finally:
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
