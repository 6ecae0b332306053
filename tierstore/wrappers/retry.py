"""Trying again when that may help, without hammering a tier that is going down.

The pauses are random between nothing and a bound that doubles ("full jitter": AWS Architecture
Blog, Exponential Backoff And Jitter, 2015), so that the ranks of a job do not come back together.
A budget shared by all requests of a tier stops retrying when most of them fail: each retry takes
one token and each success returns a tenth.

Repeating is safe: requests are idempotent, `create` and `commit` accept what they already stored,
and a listing goes on behind the last key.
"""

from __future__ import annotations

import copy
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from tierstore.backend import Backend
from tierstore.errors import DamagedInTransitError, TransientError
from tierstore.waiting import Wait, on
from tierstore.wrappers.delegate import Call, Delegate
from tierstore.wrappers.stop import GIVEN_UP

T = TypeVar("T")
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 20.0
_REFUND = 0.1
_DAMAGED_TRIES = 3  # a wrong checksum of the caller's own never becomes right


class Budget:
    """How many retries a tier may still cost; safe between threads.

    Args:
        tokens: as many retries in a row when nothing succeeds.
    """

    def __init__(self, tokens: float = 100.0) -> None:
        self._most = self._tokens = tokens
        self._lock = threading.Lock()

    def spend(self) -> bool:
        """Take a token; False if there is none."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True

    def refund(self) -> None:
        """Return a part of a token after a success."""
        with self._lock:
            self._tokens = min(self._most, self._tokens + _REFUND)


def impatient(backend: Backend, seconds: float) -> Backend:
    """Return the same backend for a caller that has only `seconds` for repeating a request."""
    if not isinstance(backend, Delegate):
        return backend
    inner = impatient(backend.inner, seconds)
    if inner is backend.inner and not isinstance(backend, Retrying):
        return backend
    other = copy.copy(backend)  # what it counts and limits stays shared
    other.inner = inner
    if isinstance(other, Retrying):
        other.shorten(seconds)
    return other


class Retrying(Delegate):
    """A backend that repeats requests that failed with TransientError.

    Args:
        inner: the backend.
        seconds: how long after its start a request may be tried again; 0 never retries.
        budget: of the tier.
        on_retry: told the operation before each repetition.
        clock: seconds, never going back.
        pause: waits for seconds, but returns True at once when the backend is closed or the work
            of this thread is given up.
    """

    def __init__(
        self,
        inner: Backend,
        *,
        seconds: float = 120.0,
        budget: Budget | None = None,
        on_retry: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], bool] | None = None,
    ) -> None:
        super().__init__(inner)
        self._seconds, self._clock, self._on_retry = seconds, clock, on_retry
        self._budget = budget or Budget()
        self._closed = threading.Event()
        self._pause = pause or self._rest

    def shorten(self, seconds: float) -> None:
        """Repeat for no longer than that."""
        self._seconds = min(self._seconds, seconds)

    def around(self, call: Call, run: Callable[[], T]) -> T:
        """Run until it succeeds, fails for good, or time or budget are used up."""
        with on(self.url, call.operation, call.key, most=self._seconds) as waiting:
            return self._repeat(call, run, waiting)

    def _repeat(self, call: Call, run: Callable[[], T], waiting: Wait) -> T:
        start = self._clock()
        tries = 1
        while True:
            try:
                result = run()
            except TransientError as error:
                waiting.why = error.message
                why = self._wait(error, tries, start)
                if why:
                    if tries > 1 or self._seconds:
                        error.add_note(f"{call.operation} was tried {tries} times; {why}")
                    raise
            else:
                self._budget.refund()
                return result
            if self._on_retry:
                self._on_retry(call.operation)
            tries += 1

    def _wait(self, error: TransientError, tries: int, start: float) -> str:
        """Pause before the next try; return why there will be none, or nothing."""
        if isinstance(error, DamagedInTransitError) and tries >= _DAMAGED_TRIES:
            return "the bytes may be damaged in this machine's memory"
        bound = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(tries - 1, 30))
        pause = random.uniform(0, bound)
        if error.retry_after is not None:
            pause = max(pause, error.retry_after)
        if self._clock() - start + pause >= self._seconds:
            return f"the {self._seconds:g} seconds for retries are over"
        if not self._budget.spend():
            return "too many requests to this tier fail to retry each of them"
        if not self._pause(pause):
            return ""
        return "the backend was closed" if self._closed.is_set() else "it was given up"

    def _rest(self, seconds: float) -> bool:
        return (GIVEN_UP.get() or self._closed).wait(seconds) or self._closed.is_set()

    def close(self) -> None:
        """End the pauses and close the wrapped backend."""
        self._closed.set()
        super().close()
