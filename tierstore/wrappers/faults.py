"""Faults on demand, the same in every run: for tests of everything that uses a backend.

::

    tier = Faulty(backend, Fault("write", nth=3, error=UnreachableError("gone")))
    tier = Faulty(backend, Fault("commit", error=DeadlineError("no answer"), after=True))
    tier = Faulty(backend, Fault("read_into", flip=17))       # one wrong byte, no error
    tier = Faulty(backend, Fault("*", nth=n, error=...))      # the n-th request of any kind
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TypeVar

from tierstore.backend import Backend
from tierstore.blocks import Buffer, cut
from tierstore.wrappers.delegate import Call, Delegate

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, and when. Everything that is set happens.

    Attributes:
        operation: of `Call`, or "*" for any.
        nth: the first request of this operation and key that it happens to, from 1.
        times: how many requests in a row.
        every: if set, it happens again, `every` requests after it began.
        key: only requests whose key contains this.
        delay: seconds to wait first.
        action: called with the request first, in its thread: to kill, to wait, to change a file.
        flip: the index of a byte whose bits are inverted in what is read or written.
        error: raised instead of carrying out the request; None carries it out.
        after: raise `error` after the request was carried out: the answer is lost.
    """

    operation: str
    nth: int = 1
    times: int = 1
    every: int = 0
    key: str = ""
    delay: float = 0.0
    action: Callable[[Call], None] | None = None
    flip: int | None = None
    error: Exception | None = None
    after: bool = False

    def concerns(self, call: Call) -> bool:
        """Return whether `call` counts towards `nth`."""
        return self.operation in ("*", call.operation) and self.key in call.key

    def happens(self, count: int) -> bool:
        """Return whether it happens to the `count`-th request that it concerns."""
        since = count - self.nth
        return since >= 0 and (since % self.every if self.every else since) < self.times


class Faulty(Delegate):
    """A backend to which `faults` happen.

    Args:
        inner: the backend.
        faults: each counts the requests that concern it by itself.
    """

    def __init__(self, inner: Backend, *faults: Fault) -> None:
        super().__init__(inner)
        self._faults = faults
        self._seen: Counter[int] = Counter()
        self._lock = threading.Lock()
        self.calls: list[Call] = []
        """Every request so far, in order."""

    def local_path(self, key: str) -> None:
        """Nothing goes around the faults."""

    def around(self, call: Call, run: Callable[[], T]) -> T:
        """Let happen what is due."""
        due = self._due(call)
        for fault in due:
            if fault.delay:
                time.sleep(fault.delay)
            if fault.action:
                fault.action(call)
        before = [fault.error for fault in due if fault.error and not fault.after]
        if before:
            raise copy(before[0])
        result = _flipped(call, run, [fault.flip for fault in due if fault.flip is not None])
        after = [fault.error for fault in due if fault.error and fault.after]
        if after:
            raise copy(after[0])
        return result

    def _due(self, call: Call) -> list[Fault]:
        due = []
        with self._lock:
            self.calls.append(call)
            for index, fault in enumerate(self._faults):
                if fault.concerns(call):
                    self._seen[index] += 1
                    if fault.happens(self._seen[index]):
                        due.append(fault)
        return due


def _flipped(call: Call, run: Callable[[], T], at: list[int]) -> T:
    """Run with bytes inverted on their way, in a copy when they belong to the caller."""
    if not at or not call.buffers:
        return run()
    if call.written:
        call.buffers = tuple(bytearray(buffer) for buffer in call.buffers)
        _invert(call.buffers, at)
        return run()
    result = run()
    _invert(call.buffers, at)
    return result


def _invert(buffers: Sequence[Buffer], at: list[int]) -> None:
    views = [memoryview(buffer).cast("B") for buffer in buffers]
    for index in at:
        for byte in cut(views, index, 1):
            byte[0] ^= 0xFF
