"""Counting what a tier is asked and how long it takes."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from tierstore.backend import Backend
from tierstore.wrappers.delegate import Call, Delegate

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Counters:
    """What happened since the tier was opened; the mappings are by operation (see `Call`).

    Attributes:
        requests: that were made, each once however often it was repeated.
        errors: that were raised to the caller.
        retries: repetitions.
        seconds: spent in requests, summed over threads.
        bytes_read: by requests that succeeded.
        bytes_written: by requests that succeeded.
    """

    requests: Mapping[str, int]
    errors: Mapping[str, int]
    retries: Mapping[str, int]
    seconds: Mapping[str, float]
    bytes_read: int
    bytes_written: int


class Tally:
    """Counters that go up; shared by the wrappers of one tier."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._retries: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}
        self._read = self._written = 0

    def retried(self, operation: str) -> None:
        """Count one repetition."""
        with self._lock:
            self._retries[operation] += 1

    def finished(self, call: Call, seconds: float, *, failed: bool) -> None:
        """Count one request."""
        with self._lock:
            self._requests[call.operation] += 1
            self._seconds[call.operation] = self._seconds.get(call.operation, 0.0) + seconds
            if failed:
                self._errors[call.operation] += 1
            else:
                self._read += call.read
                self._written += call.written

    def snapshot(self) -> Counters:
        """Return the counters as they are now."""
        with self._lock:
            return Counters(
                dict(self._requests),
                dict(self._errors),
                dict(self._retries),
                dict(self._seconds),
                self._read,
                self._written,
            )


class Metered(Delegate):
    """A backend that counts.

    Args:
        inner: the backend.
        tally: where to count; give the same `Tally.retried` to the `Retrying` below.
    """

    def __init__(self, inner: Backend, tally: Tally | None = None) -> None:
        super().__init__(inner)
        self._tally = tally or Tally()

    def snapshot(self) -> Counters:
        """Return the counters as they are now."""
        return self._tally.snapshot()

    def around(self, call: Call, run: Callable[[], T]) -> T:
        """Measure and count."""
        start, failed = time.perf_counter(), True
        try:
            result = run()
            failed = False
            return result
        finally:
            self._tally.finished(call, time.perf_counter() - start, failed=failed)
