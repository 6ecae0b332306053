"""Connections under a clock, which send from and receive into the caller's memory."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
from collections.abc import Iterable, Mapping
from contextlib import suppress

from urllib3.exceptions import HTTPError, ProxyError
from urllib3.util import wait_for_read

from tierstore.blocks import Buffer
from tierstore.http.clock import CLOCK
from tierstore.http.head import head
from tierstore.http.opening import Hop, Way, connect, is_plain, secure
from tierstore.http.receive import Inflow
from tierstore.http.response import Answer
from tierstore.waiting import moved

SEND_SIZE = 4 * 1024 * 1024
"""Bytes sent before looking at the clock, and for an early refusal, again."""

_SMALL = 64 * 1024  # bytes of a body that are sent in one piece with the head
_CONTINUE = b"HTTP/1.1 100 "

Body = Buffer | Iterable[Buffer]
"""What is sent: from where it is, or piece by piece; headers then tell its length."""


class Connection:
    """A connection that obeys the clock; it may be closed and opened again.

    Args:
        way: to the server.
        tls: whom to trust.

    Attributes:
        sock: None while it is closed.
    """

    def __init__(self, way: Way, tls: ssl.SSLContext) -> None:
        self.sock: socket.socket | None = None
        self._way, self._tls = way, tls
        self._answer: Answer | None = None
        self._inflow: Inflow | None = None

    @property
    def was_left(self) -> bool:
        """Whether it is open and the server has left, or says what nobody has asked for."""
        return self.sock is not None and wait_for_read(self.sock, 0.0)

    def open(self) -> None:
        """Open it, by a tunnel if the way has one.

        Raises:
            ProxyError: it ends at the proxy.
            HTTPError: there is no connection.
            OSError: it failed, or a certificate is not trusted.
        """
        way, deadlines = self._way, CLOCK.get().deadlines
        seconds = min(deadlines.connect, deadlines.total)
        try:
            self.sock = connect(way.first, self._tls, seconds)
            if way.tunnel is not None:
                self._dig(way.tunnel)
        except (OSError, HTTPError, http.client.HTTPException) as error:
            if not way.proxied:
                raise
            raise ProxyError("no way through", error) from error
        if way.tunnel is not None:
            self.sock = secure(self.sock, way.tunnel, self._tls, seconds)

    def _dig(self, hop: Hop) -> None:
        """Ask the proxy for a tunnel (RFC 9110, section 9.3.6)."""
        answer = self.exchange(hop.authority, "CONNECT", hop.authority, self._way.headers, None)
        if not 200 <= answer.status < 300:
            raise OSError(errno.ECONNREFUSED, f"it answers {answer.status} to CONNECT")
        if self._inflow is None or not self._inflow.empty or CLOCK.get().body_cut:
            raise http.client.HTTPException("more than the answer to CONNECT")
        self._answer = self._inflow = None

    def exchange(
        self, host: str, method: str, target: str, headers: Mapping[str, str], body: Body | None
    ) -> Answer:
        """Send a request over the connection, which is open; return the answer, its head read.

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
        inflow = self._inflow
        if inflow is None:
            if self.sock is None:
                raise OSError(errno.ENOTCONN, "the connection is closed")
            inflow = self._inflow = Inflow(self.sock)
        with suppress(BrokenPipeError):  # it has answered already
            if isinstance(pieces, tuple) and (nbytes or 0) <= _SMALL:
                self._send(inflow.sock, first + bytes(pieces[0]))
            else:
                self._send(inflow.sock, first)
                for piece in pieces:
                    self._send(inflow.sock, piece)
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
        sock, self.sock, self._inflow = self.sock, None, None
        if sock is not None:
            sock.close()

    def _send(self, sock: socket.socket, data: Buffer) -> None:
        """Send all of `data` without copying it, each step under the clock.

        Raises:
            BrokenPipeError: the server answered or left early; its answer is then read.
        """
        clock, plain = CLOCK.get(), is_plain(sock)
        view = memoryview(data).cast("B")
        try:
            while view.nbytes:
                clock.arm(sock)
                view = view[sock.send(view[:SEND_SIZE]) :]
                moved()
                # With TLS, readable may mean a session ticket; there only a stall asks.
                if view.nbytes and plain and wait_for_read(sock, 0.0) and _final(sock):
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
