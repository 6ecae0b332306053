"""The same good and bad servers, over a connection that stands already."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from tests.loopback import Serve, Start, answer, read_request, serving
from tests.unit.test_http import (  # noqa: F401 - they run here with the fixtures of this module
    test_body_and_answer_travel_between_memories,
    test_chunked_answer_fills_the_buffer,
    test_error_answer_is_returned_and_into_left_alone,
    test_nothing_is_copied,
    test_redirect_is_not_followed,
)
from tests.unit.test_http_faults import (  # noqa: F401
    PATIENT,
    test_a_large_answer_that_comes_in_drips_is_no_stall,
    test_answer_of_another_length,
    test_answer_stalls_in_the_middle,
    test_early_refusal_is_heard_while_sending,
    test_early_success_is_none,
    test_no_answer_at_all,
    test_no_http_at_all,
    test_reset_while_receiving,
    test_reset_while_sending,
    test_server_stops_receiving,
    test_slow_drip_ends_at_the_total_deadline,
)
from tierstore.errors import UnreachableError
from tierstore.http import Response, Transport

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def transport() -> Iterator[Transport]:
    with contextlib.closing(Transport(pool_size=2, deadlines=PATIENT)) as transport:
        yield transport


@pytest.fixture
def start(transport: Transport) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def begin(serve: Serve) -> str:
            def welcome(sock: socket.socket) -> None:
                read_request(sock)
                sock.sendall(answer(b"welcome"))
                serve(sock)

            url = stack.enter_context(serving(welcome))
            assert transport.request("GET", url, headers={}).body == b"welcome"
            return url

        yield begin


def saying(start: Start, said: bytes) -> str:
    def serve(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(said)

    return start(serve)


def head_of(start: Start, transport: Transport, said: bytes, method: str = "GET") -> Response:
    return transport.request(method, saying(start, said), headers={})


def test_heads_of_any_size_and_case(start: Start, transport: Transport) -> None:
    many = "".join(f"X-{n}: {'v' * 500}\r\n" for n in range(40))  # more than a buffer
    got = head_of(start, transport, answer(b"body", headers=f'{many}ETAG:  "a" \r\nx-0: w\r\n'))
    assert got.body == b"body"
    assert got.headers["etag"] == got.headers["ETag"] == '"a"'
    assert got.headers["x-0"] == "v" * 500 + ", w"
    assert "x-40" not in got.headers
    assert len(got.headers) == 42


def test_too_many_headers(start: Start, transport: Transport) -> None:
    many = "".join(f"X-{n}: {'v' * 100}\r\n" for n in range(500))
    url = saying(start, answer(b"", headers=many))
    with pytest.raises(UnreachableError, match="HTTPException"):
        transport.request("GET", url, headers={})


@pytest.mark.parametrize(
    ("said", "body"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"late"), b"late"),
        (b"HTTP/1.0 200 OK\r\n\r\nto the end", b"to the end"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end", b"to the end"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
    ids=["interim", "old", "closing", "nothing"],
)
def test_answers_are_framed(start: Start, transport: Transport, said: bytes, body: bytes) -> None:
    assert head_of(start, transport, said).body == body


def test_an_answer_to_head_has_no_body(start: Start, transport: Transport) -> None:
    got = head_of(start, transport, b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", "HEAD")
    assert (got.body, got.headers["content-length"]) == (b"", "7")


def test_a_connection_that_was_left_is_opened_anew(transport: Transport) -> None:
    opened = []

    def serve(sock: socket.socket) -> None:
        opened.append(sock)
        read_request(sock)
        sock.sendall(answer(b"bye"))

    with serving(serve) as url:
        for _ in range(3):
            assert transport.request("GET", url, headers={}).body == b"bye"
            while opened[-1].fileno() >= 0:  # until the server has left
                time.sleep(0.01)
            time.sleep(0.05)
    assert len(opened) == 3


@pytest.mark.parametrize("value", ["a\r\nX-Other: b", "a\nb", "a\rb"])
def test_headers_with_line_breaks_are_refused(
    start: Start, transport: Transport, value: str
) -> None:
    url = start(lambda sock: sock.recv(1))  # until it is closed here
    with pytest.raises(ValueError, match="line break"):
        transport.request("GET", url, headers={"X-A": value})


def test_half_a_body_is_no_whole_one(start: Start, transport: Transport) -> None:
    url = saying(start, answer(bytes(1000))[:-400])
    with pytest.raises(UnreachableError):
        transport.request("GET", url, headers={})


def test_what_follows_an_answer_unasked_is_not_the_next_one(transport: Transport) -> None:
    opened = []

    def serve(sock: socket.socket) -> None:
        opened.append(sock)
        for number in range(4):
            read_request(sock)
            more = answer(b"for nobody") if (len(opened), number) == (1, 1) else b""
            sock.sendall(answer(b"%d" % number) + more)

    with serving(serve) as url:
        got = [transport.request("GET", url, headers={}).body for _ in range(6)]
        transport.close()
    assert got == [b"0", b"1", b"0", b"1", b"2", b"3"]
    assert len(opened) == 2


def test_half_a_head_is_no_answer(start: Start, transport: Transport) -> None:
    url = saying(start, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-A: b")
    with pytest.raises(UnreachableError, match="RemoteDisconnected"):
        transport.request("GET", url, headers={})
