"""Work that may be given up: once it is, nothing is waited for on its behalf any more.

A request that is under way is not cut off; but nothing pauses, queues for its turn or is tried
again. So whoever has to end by a deadline waits for one request and not for a store to come back.
"""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar

from tierstore.errors import StorageError

GIVEN_UP: ContextVar[threading.Event | None] = ContextVar("tierstore-given-up", default=None)
"""Of the thread that it is set in: when it happens, this thread's work is given up."""

LOOK = 0.2
"""Seconds after which to look again, where nothing else wakes who waits."""


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
