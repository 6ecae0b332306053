"""Saying for whom a command waits, where there is a terminal and where there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tierstore.cli.amounts import duration
from tierstore.cli.output import say
from tierstore.text import printable
from tierstore.waiting import Wait, overdue

FIRST = 3.0
"""Seconds without a byte after which it is said."""
LOOK = 1.0
"""Seconds between two looks."""
_AGAIN, _RARELY = 30.0, 480.0  # seconds until it is said again: twice as many each time, to these


@contextmanager
def said_waits() -> Iterator[None]:
    """Say on standard error for whom this process waits, and why, while it lasts."""
    over = threading.Event()
    watch = threading.Thread(target=_watch, args=(over,), name="tierstore-waits", daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _watch(over: threading.Event) -> None:
    due: dict[str, float] = {}
    pause: dict[str, float] = {}
    while not over.wait(LOOK):
        now = time.monotonic()
        for wait in overdue(FIRST):
            if now >= due.get(wait.place, 0.0):
                pause[wait.place] = min(_RARELY, pause.get(wait.place, _AGAIN / 2) * 2)
                due[wait.place] = now + pause[wait.place]
                say(_line(wait, now), stderr=True)


def _line(wait: Wait, now: float) -> str:
    so_far = duration(round(now - wait.begun))
    most = f" of {duration(wait.most)} at most" if wait.most else ""
    what = " ".join(filter(None, wait.what))
    why = f": {wait.why}" if wait.why else ""
    return printable(f"waiting for {wait.place}: {what}{why} ({so_far}{most})")
