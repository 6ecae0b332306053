"""Carry out many independent pieces of work with a few threads of a shared pool."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, wait
from typing import Any, Generic, ParamSpec, TypeVar

from tierstore.wrappers.stop import GIVEN_UP

T = TypeVar("T")
P = ParamSpec("P")


def run_all(items: Iterable[T], work: Callable[[T], None], *, pool: Executor, width: int) -> None:
    """Call `work` for every item, in order of start, at most `width` at a time.

    The first error stops the start of further items and is raised when all threads have let go of
    theirs, so no buffer is in use afterwards. The same holds for an interrupt of the caller, after
    which no request is repeated either: a store that is down would keep it waiting.
    """
    queue = _Queue(items, work)
    futures: list[Future[None]] = []
    try:
        futures += [pool.submit(queue.drain) for _ in range(width)]
        wait(futures)
    except BaseException:
        queue.interrupted.set()
        raise
    finally:
        queue.stop()
        wait(futures)
    if queue.error is not None:
        raise queue.error


class _Queue(Generic[T]):
    def __init__(self, items: Iterable[T], work: Callable[[T], None]) -> None:
        self.error: BaseException | None = None
        self.interrupted = threading.Event()
        self._items = iter(items)
        self._work = work
        self._lock = threading.Lock()
        self._stopped = False

    def drain(self) -> None:
        """Work until nothing is left or something failed."""
        token = GIVEN_UP.set(GIVEN_UP.get() or self.interrupted)
        try:
            for item in iter(self._next, None):
                self._work(item)
        except BaseException as error:
            self.stop(error)
        finally:
            GIVEN_UP.reset(token)

    def stop(self, error: BaseException | None = None) -> None:
        """Start nothing more; the first error is kept."""
        with self._lock:
            self._stopped = True
            self.error = self.error or error

    def _next(self) -> T | None:
        with self._lock:
            return None if self._stopped else next(self._items, None)


class DaemonPool(Executor):
    """Threads that the end of the process does not wait for, unlike a ThreadPoolExecutor's.

    Args:
        width: threads at most; each is started when it is first needed.
        name: what they are called, with a number.
        begin: called first in each of them.
    """

    def __init__(self, width: int, name: str, begin: Callable[[], object]) -> None:
        self._width, self._name, self._begin = width, name, begin
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._calls = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See `Executor.submit`; from one thread at a time."""
        future: Future[T] = Future()
        self._calls.put((future, lambda: fn(*args, **kwargs)))
        if not self._idle.acquire(blocking=False) and len(self._threads) < self._width:
            name = f"{self._name}_{len(self._threads)}"
            self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
            self._threads[-1].start()
        return future

    def end(self) -> list[threading.Thread]:
        """Let the threads end with what they have; return them."""
        for _ in self._threads:
            self._calls.put(None)
        return self._threads

    def _work(self) -> None:
        self._begin()
        while (item := self._calls.get()) is not None:
            future, call = item
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            del item, future, call
            self._idle.release()
