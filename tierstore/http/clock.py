"""The deadlines of a request, and how they reach the socket."""

from __future__ import annotations

import socket
import time
from contextvars import ContextVar
from dataclasses import dataclass

LUMP = 512 * 1024
"""Bytes to be woken for; by default Linux wakes a reader for every segment."""


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


# A request runs in its caller's thread from end to end, so its clock travels beside it.
CLOCK: ContextVar[Clock] = ContextVar("tierstore-http-clock")
