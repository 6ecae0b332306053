"""What a connection receives, under the clock of whoever waits for it."""

from __future__ import annotations

import http.client
import re
import socket

from tierstore.blocks import Buffer
from tierstore.http.clock import CLOCK
from tierstore.http.opening import is_plain

_HEAD = 8192  # bytes asked for at once; what comes behind a head is copied once more
_LONGEST = 65_536
_LINE = 1024
_END = re.compile(rb"\r?\n\r?\n")
_BEGIN = b"HTTP/1."
_NOTHING = memoryview(b"")


class Inflow:
    """The read side of a socket: a stall or a slow drip ends at its deadline.

    A large body is waited for in lumps (SO_RCVLOWAT, socket(7)), which takes a third off the CPU
    of receiving it. A stall that follows a few bytes is then seen after two stall times at most.

    Attributes:
        sock: the socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._plain = is_plain(sock)
        self._held = _NOTHING
        self._lumps = False

    @property
    def empty(self) -> bool:
        """Whether nothing was received that nobody took."""
        return not self._held.nbytes

    def head(self) -> bytes:
        """Take the head of an answer; return its lines, each with its end.

        Raises:
            HTTPException: it is none, or far too long, or the connection ends.
        """
        text, self._held = bytes(self._held), _NOTHING
        while (end := _END.search(text)) is None:
            if not text.startswith(_BEGIN[: len(text)]):
                raise http.client.BadStatusLine(ascii(text[:80]))
            if len(text) > _LONGEST:
                raise http.client.LineTooLong("head")
            text += self._more("an answer")
        self._held = memoryview(text)[end.end() :]
        return text[: end.start()] + b"\n"

    def line(self) -> bytes:
        """Take a line of the frame of a body; return it without its end.

        Raises:
            HTTPException: it is too long, or the connection ends.
        """
        while True:
            text = bytes(self._held[:_LINE])
            if (end := text.find(b"\n")) >= 0:
                self._held = self._held[end + 1 :]
                return text[:end].removesuffix(b"\r")
            if len(text) == _LINE:
                raise http.client.LineTooLong("chunk")
            self._held = memoryview(text + self._more("the end of a body"))

    def _more(self, awaited: str) -> bytes:
        self._wait_for_lumps(CLOCK.get().lump, on=False)
        CLOCK.get().arm(self.sock)
        more = self.sock.recv(_HEAD)
        if not more:
            raise http.client.RemoteDisconnected(f"the connection ended before {awaited}")
        return more

    def readinto(self, buffer: Buffer) -> int:
        """Receive some bytes; return how many, none at the end of the connection."""
        view = memoryview(buffer)
        if self._held.nbytes:
            count = min(view.nbytes, self._held.nbytes)
            view[:count], self._held = self._held[:count], self._held[count:]
            return count
        sock, clock = self.sock, CLOCK.get()
        clock.arm(sock)
        # TLS may wait for less than a lump, of which the socket knows nothing.
        lumps = self._plain and view.nbytes >= clock.lump
        self._wait_for_lumps(clock.lump, on=lumps)
        try:
            count = sock.recv_into(view)
        except TimeoutError:
            count = self._rest(view)
        if count == view.nbytes:
            # Whoever looks at the socket next wants any byte.
            self._wait_for_lumps(clock.lump, on=False)
        return count

    def _wait_for_lumps(self, lump: int, *, on: bool) -> None:
        if on != self._lumps:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, lump if on else 1)
            self._lumps = on

    def _rest(self, view: memoryview) -> int:
        """Take what has come although it is no lump; a TimeoutError if that is nothing."""
        if not self._lumps:
            raise TimeoutError
        self.sock.settimeout(0)
        try:
            return self.sock.recv_into(view)
        except BlockingIOError:
            raise TimeoutError from None
