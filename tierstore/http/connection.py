"""Connections under a clock, which send from and receive into the caller's memory."""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util import wait_for_read

from tierstore.blocks import Buffer
from tierstore.http.head import Answer, head

SEND_SIZE = 4 * 1024 * 1024
"""Bytes sent before looking at the clock, and for an early refusal, again."""

LUMP = 512 * 1024
"""Bytes to be woken for; by default Linux wakes a reader for every segment."""

_SMALL = 64 * 1024  # bytes of a body that are sent in one piece with the head
_CONTINUE = b"HTTP/1.1 100 "


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long a request may take, in seconds.

    Attributes:
        connect: to open one connection, TLS included.
        stall: without any byte moving in either direction.
        total: for the whole request, waiting for a free connection included.
    """

    connect: float = 5.0
    stall: float = 30.0
    total: float = 600.0


class Clock:
    """The deadlines of one request, as it runs.

    Attributes:
        lump: bytes of a large body to be woken for.
        body_cut: the body was not sent to its end, so the connection cannot be used again.
    """

    def __init__(self, deadlines: Deadlines, lump: int = LUMP) -> None:
        self.deadlines = deadlines
        self.lump = lump
        self.end = time.monotonic() + deadlines.total
        self.body_cut = False

    def left(self) -> float:
        """Return the seconds that remain."""
        return self.end - time.monotonic()

    def arm(self, sock: socket.socket) -> None:
        """Give the next call on `sock` the time it may take."""
        left = self.left()
        if left <= 0:
            raise TimeoutError
        timeout = min(self.deadlines.stall, left)
        if sock.gettimeout() != timeout:
            sock.settimeout(timeout)


# urllib3 opens, sends and receives within one call in the caller's thread, and has no argument that
# reaches the socket; so the clock travels beside it.
CLOCK: ContextVar[Clock] = ContextVar("tierstore-http-clock")


class _File(io.RawIOBase):
    """A socket's read side under the clock: a stall or a slow drip ends at its deadline.

    A large body is waited for in lumps (SO_RCVLOWAT, socket(7)), which takes a third off the CPU
    of receiving it. A stall that follows a few bytes is then seen after two stall times at most.
    """

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        self._sock = sock
        self._clock = clock
        self._file = sock.makefile("rb", buffering=0)  # keeps the socket open until it is read
        self._lumps = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:  # type: ignore[override]
        sock, view = self._sock, memoryview(buffer)
        self._clock.arm(sock)
        # TLS may wait for less than a lump, of which the socket knows nothing.
        self._wait_for_lumps(
            on=view.nbytes >= self._clock.lump and not isinstance(sock, ssl.SSLSocket)
        )
        try:
            count = sock.recv_into(view)
        except TimeoutError:
            count = self._rest(view)
        if count == view.nbytes:
            self._wait_for_lumps(on=False)  # whoever looks at the socket next wants any byte
        return count

    def _wait_for_lumps(self, *, on: bool) -> None:
        if on != self._lumps:
            least = self._clock.lump if on else 1
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
            self._lumps = on

    def _rest(self, view: memoryview) -> int:
        """Take what has come although it is no lump; a TimeoutError if that is nothing."""
        if not self._lumps:
            raise TimeoutError
        self._sock.settimeout(0)
        try:
            return self._sock.recv_into(view)
        except BlockingIOError:
            raise TimeoutError from None

    def close(self) -> None:
        self._file.close()
        super().close()


class _Makefile:
    """What http.client reads an answer from: it asks a socket only for its file."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_File(self._sock, CLOCK.get()))


class Connection(HTTPConnection):
    """A connection that obeys the clock and keeps its answer's zero-copy side at hand."""

    raw: http.client.HTTPResponse | None = None

    def response_class(  # type: ignore[override]
        self, sock: socket.socket, method: str | None = None
    ) -> http.client.HTTPResponse:
        """Begin an answer, and keep it as `raw`."""
        # urllib3's own answer copies every byte it reads (2.x); http.client's does not.
        self.raw = http.client.HTTPResponse(_Makefile(sock), method=method)  # type: ignore[arg-type]
        return self.raw

    def exchange(
        self, method: str, target: str, headers: Mapping[str, str], body: Buffer | None
    ) -> Answer:
        """Send a request while the connection stands; return the answer, its head read.

        Raises:
            OSError: the connection failed.
            HTTPException: what came is no answer.
            ValueError: a header has a line break in it.
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        host = host if self.port == self.default_port else f"{host}:{self.port}"
        first = head(host, method, target, headers, body)
        together = body is None or memoryview(body).nbytes <= _SMALL
        with suppress(BrokenPipeError):  # it has answered already
            self.send(first + bytes(body or b"") if together else first)
            if not together and body is not None:
                self.send(body)
        answer = Answer(_Makefile(self.sock), method=method)  # type: ignore[arg-type]
        self.raw = answer
        answer.begin()
        return answer

    def settle(self, *, clean: bool) -> None:
        """Let go of the answer; stay open only if nothing more of it can come.

        Args:
            clean: False where the request was cut short, or the answer was none.
        """
        raw, self.raw = self.raw, None
        if clean and raw is not None and raw.isclosed() and not raw.will_close:
            return
        if raw is not None:
            raw.close()
        self.close()

    def connect(self) -> None:
        """Open the connection."""
        super().connect()
        # An unverified connection was chosen by the user and logged once by Transport.
        self.is_verified = True

    def send(self, data: Buffer) -> None:  # type: ignore[override]
        """Send all of `data` without copying it, each step under the clock.

        Raises:
            BrokenPipeError: the server answered or left early; urllib3 then reads the answer.
        """
        if self.sock is None:
            self.connect()
        clock, sock = CLOCK.get(), self.sock
        tls = isinstance(sock, ssl.SSLSocket)
        view = memoryview(data).cast("B")
        try:
            while view.nbytes:
                clock.arm(sock)
                view = view[sock.send(view[:SEND_SIZE]) :]
                # With TLS, readable may mean a session ticket; there only a stall asks.
                if view.nbytes and not tls and wait_for_read(sock, 0.0) and _final(sock):
                    raise BrokenPipeError
        except TimeoutError:
            if clock.left() <= 0 or not wait_for_read(sock, 0.0):
                raise
            clock.body_cut = True
            raise BrokenPipeError from None
        except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            clock.body_cut = True
            raise BrokenPipeError from None


def _final(sock: socket.socket) -> bool:
    """Return whether what has come is the answer, not an interim "100 Continue", which is taken.

    HDFS datanodes send one unasked (RFC 9110, section 15.2.1, lets a client ignore it).
    """
    head = sock.recv(4096, socket.MSG_PEEK)
    if not head or not _CONTINUE.startswith(head[: len(_CONTINUE)]):
        return True
    end = head.find(b"\r\n\r\n")
    if end >= 0:
        sock.recv(end + 4)
    return False


class TLSConnection(Connection, HTTPSConnection):
    """The same over TLS."""


class _Standing(HTTPConnectionPool):
    """A pool that lends a connection that stands."""

    def lend(self, seconds: float) -> Connection | None:
        """Return one, to be given back; None if the next one has to be opened first.

        Raises:
            EmptyPoolError: all of them are in use for so long.
        """
        connection = self._get_conn(timeout=seconds)
        if isinstance(connection, Connection) and connection.sock is not None:
            return connection
        self._put_conn(connection)
        return None

    def give_back(self, connection: Connection) -> None:
        """Take it back, open or closed."""
        self._put_conn(connection)


class Pool(_Standing):
    """A pool of such connections."""

    ConnectionCls = Connection


class TLSPool(_Standing, HTTPSConnectionPool):
    """The same over TLS."""

    ConnectionCls = TLSConnection
