"""Carry out many independent pieces of work with a few threads of a shared pool."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, wait
from typing import Generic, TypeVar

T = TypeVar("T")


def run_all(items: Iterable[T], work: Callable[[T], None], *, pool: Executor, width: int) -> None:
    """Call `work` for every item, in order of start, at most `width` at a time.

    The first error stops the start of further items and is raised when all threads have let go of
    theirs, so no buffer is in use afterwards. The same holds for an interrupt of the caller.
    """
    queue = _Queue(items, work)
    futures: list[Future[None]] = []
    try:
        futures += [pool.submit(queue.drain) for _ in range(width)]
        wait(futures)
    finally:
        queue.stop()
        wait(futures)
    if queue.error is not None:
        raise queue.error


class _Queue(Generic[T]):
    def __init__(self, items: Iterable[T], work: Callable[[T], None]) -> None:
        self.error: BaseException | None = None
        self._items = iter(items)
        self._work = work
        self._lock = threading.Lock()
        self._stopped = False

    def drain(self) -> None:
        """Work until nothing is left or something failed."""
        try:
            for item in iter(self._next, None):
                self._work(item)
        except BaseException as error:
            self.stop(error)

    def stop(self, error: BaseException | None = None) -> None:
        """Start nothing more; the first error is kept."""
        with self._lock:
            self._stopped = True
            self.error = self.error or error

    def _next(self) -> T | None:
        with self._lock:
            return None if self._stopped else next(self._items, None)
