"""At most so many requests at a time, and fewer while the store asks for fewer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from tierstore.backend import Backend, Capabilities
from tierstore.errors import ThrottledError
from tierstore.wrappers.delegate import Call, Delegate
from tierstore.wrappers.stop import GIVEN_UP, LOOK, given_up, refusal

T = TypeVar("T")
_ENOUGH = 1024  # at a time, of a store that asks for nothing any more


class Limited(Delegate):
    """A backend with a limit of requests in flight; more wait their turn.

    A store that asks for fewer gets half of what it had in flight, and one more whenever all of
    these were answered well: additive increase, multiplicative decrease (Chiu and Jain, 1989).
    What was in flight already when it last asked does not count again.

    Args:
        inner: the backend; its own deadlines bound how long a turn takes.
        requests: at least 1, and it replaces `capabilities.concurrency`; None for no limit but
            what the store asks for.
    """

    def __init__(self, inner: Backend, requests: int | None = None) -> None:
        super().__init__(inner)
        self._most = float(requests or "inf")
        self._allowed, self._running, self._asked = self._most, 0, 0
        self._lock = threading.Lock()
        self._turn = threading.Condition(self._lock)
        self._capabilities = (
            replace(inner.capabilities, concurrency=requests, small_concurrency=0)
            if requests
            else inner.capabilities
        )

    @property
    def capabilities(self) -> Capabilities:
        """Those of the wrapped backend, with the limit as its concurrency."""
        return self._capabilities

    def around(self, call: Call, run: Callable[[], T]) -> T:  # noqa: ARG002 - all take a turn
        """Wait for a turn, and learn from the answer how many there may be."""
        with self._lock:
            while self._running + 1 > self._allowed:
                if given_up():
                    raise refusal()
                self._turn.wait(LOOK if GIVEN_UP.get() else None)
            self._running += 1
            asked = self._asked
        throttled = False
        try:
            return run()
        except ThrottledError:
            throttled = True
            raise
        finally:
            with self._lock:
                self._learn(throttled, asked)
                self._running -= 1
                self._turn.notify(2)  # the turn, and one that may have been added

    def _learn(self, throttled: bool, asked: int) -> None:
        if throttled and asked == self._asked:
            self._asked += 1
            self._allowed = max(1.0, self._running / 2)
        elif not throttled and self._allowed < self._most:
            more = self._allowed + 1 / self._allowed
            self._allowed = min(self._most, more) if more < _ENOUGH else self._most
