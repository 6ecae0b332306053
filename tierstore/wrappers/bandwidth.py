"""So many bytes per second, so that checkpoints leave room on a shared network."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tierstore.backend import Backend
from tierstore.waiting import on
from tierstore.wrappers.delegate import Call, Delegate
from tierstore.wrappers.stop import pause

T = TypeVar("T")
_BURST_SECONDS = 1.0


class TokenBucket:
    """Hands out bytes at a rate; what was not used for a second is kept for a burst.

    Args:
        rate: bytes per second.
        clock: seconds, never going back.
        sleep: waits for seconds.
    """

    def __init__(
        self,
        rate: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = pause,
    ) -> None:
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._lock = threading.Lock()
        self._paid_until = clock() - _BURST_SECONDS

    def take(self, count: int) -> None:
        """Wait until `count` bytes may pass. More than a burst is allowed, and paid for later."""
        with self._lock:
            now = self._clock()
            start = max(self._paid_until, now - _BURST_SECONDS)
            self._paid_until = start + count / self._rate
            delay = start - now
        if delay > 0:
            self._sleep(delay)


class Throttled(Delegate):
    """A backend that reads and writes no faster than told.

    Args:
        inner: the backend.
        read: bytes per second, or None for no limit.
        write: the same for writing.
    """

    def __init__(self, inner: Backend, *, read: float | None, write: float | None) -> None:
        super().__init__(inner)
        self._read = TokenBucket(read) if read else None
        self._write = TokenBucket(write) if write else None

    def around(self, call: Call, run: Callable[[], T]) -> T:
        """Wait until the bytes of the call may pass."""
        with on(self.url, call.operation) as waiting:
            before, waiting.why = waiting.why, "only so many bytes a second are allowed"
            if self._read and call.read:
                self._read.take(call.read)
            if self._write and call.written:
                self._write.take(call.written)
            waiting.why = before
            return run()
