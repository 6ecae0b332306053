"""Connections under a clock, which send from and receive into the caller's memory."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import cast

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.util import wait_for_read

from tierstore.blocks import Buffer
from tierstore.http.answer import Answer
from tierstore.http.clock import CLOCK
from tierstore.http.head import head
from tierstore.http.inflow import Inflow, Tap
from tierstore.waiting import moved

SEND_SIZE = 4 * 1024 * 1024
"""Bytes sent before looking at the clock, and for an early refusal, again."""

_SMALL = 64 * 1024  # bytes of a body that are sent in one piece with the head
_CONTINUE = b"HTTP/1.1 100 "


class Connection(HTTPConnection):
    """A connection that obeys the clock and keeps its answer's zero-copy side at hand."""

    raw: http.client.HTTPResponse | Answer | None = None
    _inflow: Inflow | None = None

    def response_class(  # type: ignore[override]
        self, sock: socket.socket, method: str | None = None
    ) -> http.client.HTTPResponse:
        """Begin an answer, and keep it as `raw`."""
        # urllib3's own answer copies every byte it reads (2.x); http.client's does not.
        source = Tap(Inflow(sock), keeps=True)
        self.raw = raw = http.client.HTTPResponse(source, method=method)  # type: ignore[arg-type]
        return raw

    def exchange(
        self, method: str, target: str, headers: Mapping[str, str], body: Buffer | None
    ) -> Answer:
        """Send a request over the open connection; return the answer, its head read.

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
        inflow = self._inflow
        if inflow is None or inflow.sock is not self.sock:
            inflow = self._inflow = Inflow(self.sock)
        self.raw = answer = Answer(inflow, method)
        return answer

    def settle(self, *, clean: bool) -> None:
        """Let go of the answer; stay open only if nothing more of it can come.

        Args:
            clean: False where the request was cut short, or the answer was none.
        """
        raw, self.raw = self.raw, None
        done = raw is not None and raw.isclosed() and not raw.will_close
        if clean and done and (self._inflow is None or self._inflow.empty):
            return
        if raw is not None:
            raw.close()
        self.close()

    def close(self) -> None:
        """Close the connection, and forget what came over it. Idempotent."""
        self._inflow = None
        super().close()

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
                moved()
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


class _Lending(HTTPConnectionPool):
    """A pool that lends its connections."""

    def lend(self, seconds: float) -> Connection:
        """Return one, to be given back; it may have to be opened.

        Raises:
            EmptyPoolError: all of them are in use for so long.
        """
        return cast("Connection", self._get_conn(timeout=seconds))

    def give_back(self, connection: Connection) -> None:
        """Take it back, open or closed."""
        self._put_conn(connection)


class Pool(_Lending):
    """A pool of such connections."""

    ConnectionCls = Connection


class TLSPool(_Lending, HTTPSConnectionPool):
    """The same over TLS."""

    ConnectionCls = TLSConnection
