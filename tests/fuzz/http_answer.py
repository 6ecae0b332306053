"""Answers of HTTP servers, as a request takes them: whole, into memory, and to HEAD."""

from __future__ import annotations

import os
import socket
from random import Random
from typing import ClassVar

from tierstore.errors import TierstoreError
from tierstore.http import Deadlines, Response, Transport, connection

_SIZE = 26
_ROOM = 100_000  # bytes that a socket takes before anyone reads them
_BODY = b"abcdefghijklmnopqrstuvwxyz"
_OK = b"HTTP/1.1 200 OK\r\n"
_LINES = [
    b"Content-Length: 26", b"Content-Length: 5", b"Content-Length: 99999999999999999999",
    b"Content-Length: -1", b"Content-Length: \xb2", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip", b"Connection: close", b"Content-Encoding: gzip", b"A", b": b", b"",
    b" folded", b"HTTP/1.1 100 Continue", b"HTTP/1.1 204 No Content", b"5", b"0", b"ffffffffff",
    b"-1", b"1a;x=y", b"X: " + b"y" * 70_000,
]  # fmt: skip


def SEEDS() -> list[bytes]:
    chunks = b"5;x=y\r\nabcde\r\n15\r\nfghijklmnopqrstuvwxyz\r\n0\r\nX-Trailer: yes\r\n\r\n"
    return [
        _OK + b'Content-Length: 26\r\nETag: "x"\r\nContent-Type: text/plain\r\n\r\n' + _BODY,
        _OK + b"Content-Length: 26\r\nContent-Length: 26\r\n\r\n" + _BODY,
        _OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks,
        b"HTTP/1.1 100 Continue\r\n\r\n" + _OK + b"Content-Length: 26\r\n\r\n" + _BODY,
        b"HTTP/1.0 200 OK\r\n\r\n" + _BODY,
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 26\r\n\r\n" + _BODY,
    ]


class _Recorded:
    """A server, or a proxy, that has said something, and left."""

    said = b""
    others: ClassVar[list[socket.socket]] = []

    @classmethod
    def connect(cls, *_: object) -> socket.socket:
        sock, other = socket.socketpair()
        other.sendall(cls.said[:_ROOM])
        other.shutdown(socket.SHUT_WR)
        cls.others.append(other)  # takes the request, unread
        return sock

    @classmethod
    def leave(cls) -> None:
        while cls.others:
            cls.others.pop().close()


connection.connect = _Recorded.connect  # in this process, which does nothing else
os.environ |= {"HTTPS_PROXY": "http://recorded:1", "NO_PROXY": "", "no_proxy": ""}
os.environ.pop("https_proxy", None)
_TRANSPORT = Transport(pool_size=1, deadlines=Deadlines(stall=60.0))


def _ask(method: str, into: list[memoryview] | None, scheme: str) -> Response:
    url, headers = f"{scheme}://recorded/k", {"Cookie": "secret"}
    return _TRANSPORT.request(method, url, headers=headers, into=into, ok=range(200, 500))


def parse(data: bytes) -> None:
    _Recorded.said = data
    failed: list[Exception] = []
    for method, into, scheme in (
        ("GET", None, "http"),
        ("HEAD", None, "http"),
        ("GET", None, "https"),  # to CONNECT; behind which there is no TLS
        ("GET", [memoryview(bytearray(_SIZE))], "http"),
    ):
        try:
            found = _ask(method, into, scheme)
        except Exception as error:  # the next way to ask has to be tried as well
            if scheme == "http" or not isinstance(error, TierstoreError):
                failed.append(error)
        else:
            assert len(found.body) <= len(data)
            assert found.told is None or 0 <= found.told < 1 << 63
            assert method != "HEAD" or found.body == b""
            assert scheme == "http"
        finally:
            _Recorded.leave()
    foreign = [error for error in failed if not type(error).__module__.startswith("tierstore.")]
    for error in (*foreign, *failed):
        raise error


def mutate(data: bytes, rng: Random) -> bytes:
    """Lines of the answer are others, gone, or there twice."""
    lines = data.split(b"\r\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        lines[at : at + rng.choice((0, 1, 1, 2))] = rng.choices(_LINES, k=rng.choice((0, 1, 1, 2)))
        lines = lines or [b""]
    return b"\r\n".join(lines)
