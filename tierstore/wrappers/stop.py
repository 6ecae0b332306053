"""Work that may be given up: once it is, nothing is waited for on its behalf any more.

A request that is under way is not cut off; but nothing pauses, queues for its turn or is tried
again. So whoever has to end by a deadline waits for one request and not for a store to come back.
"""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar
from typing import Protocol

from tierstore.errors import StorageError

LOOK = 0.2
"""Seconds after which to look again, where nothing else wakes who waits."""


class Stop(Protocol):
    """What may happen, as a `threading.Event`."""

    def is_set(self) -> bool:
        """Return whether it has."""
        ...

    def wait(self, timeout: float) -> bool:
        """Wait for it; return whether it has happened."""
        ...


class EitherOf:
    """Happens when one of two events does; the first may be noticed a moment later."""

    def __init__(self, first: threading.Event, second: threading.Event) -> None:
        self._first, self._second = first, second

    def is_set(self) -> bool:
        """See `Stop.is_set`."""
        return self._first.is_set() or self._second.is_set()

    def wait(self, timeout: float) -> bool:
        """See `Stop.wait`."""
        end = time.monotonic() + timeout
        while not self.is_set() and (left := end - time.monotonic()) > 0:
            self._second.wait(min(left, LOOK))
        return self.is_set()


GIVEN_UP: ContextVar[Stop | None] = ContextVar("tierstore-given-up", default=None)
"""Of the thread that it is set in: when it happens, this thread's work is given up."""


def given_up() -> bool:
    """Return whether the work of this thread is given up."""
    stop = GIVEN_UP.get()
    return stop is not None and stop.is_set()


def pause(seconds: float) -> None:
    """Wait.

    Raises:
        StorageError: this thread's work is given up, or is while it waits.
    """
    stop = GIVEN_UP.get()
    if stop is None:
        time.sleep(seconds)
    elif stop.wait(seconds):
        raise refusal()


def refusal() -> StorageError:
    """Return what is raised instead of waiting."""
    return StorageError("it was given up before its turn", hint="whoever asked for it was closed")
