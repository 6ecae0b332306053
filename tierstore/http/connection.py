"""Connections under a clock, which send from and receive into the caller's memory."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import cast

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, ProxyError
from urllib3.util import wait_for_read

from tierstore.blocks import Buffer
from tierstore.http.clock import CLOCK
from tierstore.http.head import head
from tierstore.http.receive import Inflow, Tap
from tierstore.http.response import Answer
from tierstore.waiting import moved

SEND_SIZE = 4 * 1024 * 1024
"""Bytes sent before looking at the clock, and for an early refusal, again."""

_SMALL = 64 * 1024  # bytes of a body that are sent in one piece with the head
_CONTINUE = b"HTTP/1.1 100 "

Body = Buffer | Iterable[Buffer]
"""What is sent: from where it is, or piece by piece; headers then tell its length."""


class Connection(HTTPConnection):
    """A connection that obeys the clock."""

    _answer: Answer | None = None
    _inflow: Inflow | None = None

    def response_class(  # type: ignore[override]
        self, sock: socket.socket, method: str | None = None
    ) -> http.client.HTTPResponse:
        """Begin what a proxy answers to CONNECT, which is http.client's business."""
        source = Tap(Inflow(sock))
        return http.client.HTTPResponse(source, method=method)  # type: ignore[arg-type]

    def exchange(
        self, host: str, method: str, target: str, headers: Mapping[str, str], body: Body | None
    ) -> Answer:
        """Send a request over the open connection; return the answer, its head read.

        Raises:
            OSError: the connection failed.
            HTTPException: what came is no answer.
            StorageError: nobody can read it.
            ValueError: a header has a line break in it.
        """
        if body is None and method in ("PUT", "POST"):
            body = b""
        pieces = (body or b"",) if body is None or isinstance(body, Buffer) else body
        nbytes = memoryview(body).nbytes if isinstance(body, Buffer) else None
        first = head(host, method, target, headers, nbytes)
        with suppress(BrokenPipeError):  # it has answered already
            if isinstance(pieces, tuple) and (nbytes or 0) <= _SMALL:
                self.send(first + bytes(pieces[0]))
            else:
                self.send(first)
                for piece in pieces:
                    self.send(piece)
        inflow = self._inflow
        if inflow is None or inflow.sock is not self.sock:
            inflow = self._inflow = Inflow(self.sock)
        self._answer = answer = Answer(inflow, method)
        return answer

    def settle(self, *, clean: bool) -> None:
        """Let go of the answer; stay open only if nothing more of it can come.

        Args:
            clean: False where the request was cut short, or the answer was none.
        """
        answer, self._answer = self._answer, None
        done = answer is not None and answer.isclosed() and not answer.will_close
        if not (clean and done and self._inflow is not None and self._inflow.empty):
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
            BrokenPipeError: the server answered or left early; its answer is then read.
        """
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

    def open(self, connection: Connection) -> None:
        """Open a connection, and through a proxy the tunnel that TLS wants.

        Raises:
            ProxyError: it ends at the proxy.
        """
        try:
            if self.proxy is not None and self.scheme == "https":
                self._prepare_proxy(connection)
            else:
                connection.connect()
        except (OSError, HTTPError, http.client.HTTPException) as error:
            if self.proxy is None or connection.has_connected_to_proxy:
                raise
            raise ProxyError("no way through", error) from error

    def give_back(self, connection: Connection) -> None:
        """Take it back, open or closed."""
        self._put_conn(connection)


class Pool(_Lending):
    """A pool of such connections."""

    ConnectionCls = Connection


class TLSPool(_Lending, HTTPSConnectionPool):
    """The same over TLS."""

    ConnectionCls = TLSConnection
