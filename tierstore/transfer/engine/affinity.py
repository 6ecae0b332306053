"""One processor core for the threads that move small objects.

Python lets one thread run at a time. Threads on several cores gain nothing from that, and whatever
the last one touched has to follow the interpreter's lock from core to core: for objects of a few
KiB that is a third of all time ("Understanding the Python GIL", David Beazley, PyCon 2010). What
moves many bytes lets go of the lock for long, and runs on any core.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time

_KEPT = 1.0  # seconds until the kernel is asked anew which core is the least busy
_BORN = -1  # no core's number
_libc = ctypes.CDLL(None)


class Affinity:
    """The core that threads share; any number of them may come and go.

    Where a core of its own helps nothing (there is but one, or no lock), or is not allowed, threads
    are left alone.
    """

    def __init__(self) -> None:
        self._any = os.sched_getaffinity(0)
        locked = getattr(sys, "_is_gil_enabled", lambda: True)()
        self._shared = locked and len(self._any) > 1
        self._cpu = _current()
        self._asked = time.monotonic()
        self._mine = _Mine()

    def join(self) -> None:
        """Have the calling thread run there.

        Now and then one thread stays free until it comes here again, having waited for others
        meanwhile: then it is where the kernel found room, and that core is the shared one.
        """
        if not self._shared:
            return
        if self._mine.scouts:
            self._mine.scouts, self._cpu = False, _current()
        elif time.monotonic() - self._asked > _KEPT:
            self._asked, self._mine.scouts = time.monotonic(), True
            self._bind(None)
            return
        self._bind(self._cpu)

    def leave(self) -> None:
        """Have the calling thread run on any core again."""
        if self._shared or self._mine.cpu not in (None, _BORN):
            self._bind(None)

    def _bind(self, cpu: int | None) -> None:
        if self._mine.cpu == cpu:
            return
        try:
            os.sched_setaffinity(0, self._any if cpu is None else {cpu})
        except OSError:  # forbidden, or the core was taken from this process
            self._shared = False
        self._mine.cpu = cpu


class _Mine(threading.local):
    """What a thread is bound to: at first what it was born with, and None for no core."""

    cpu: int | None = _BORN
    scouts = False


def _current() -> int:
    return int(_libc.sched_getcpu())
