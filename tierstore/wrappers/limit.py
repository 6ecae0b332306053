"""At most so many requests at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from tierstore.backend import Backend, Capabilities
from tierstore.wrappers.delegate import Call, Delegate

T = TypeVar("T")


class Limited(Delegate):
    """A backend with at most `requests` in flight; more wait their turn.

    Args:
        inner: the backend; its own deadlines bound how long a turn takes.
        requests: at least 1. It replaces `capabilities.concurrency`.
    """

    def __init__(self, inner: Backend, requests: int) -> None:
        super().__init__(inner)
        self._turns = threading.BoundedSemaphore(requests)
        self._capabilities = replace(inner.capabilities, concurrency=requests)

    @property
    def capabilities(self) -> Capabilities:
        """Those of the wrapped backend, with the limit as its concurrency."""
        return self._capabilities

    def around(self, call: Call, run: Callable[[], T]) -> T:  # noqa: ARG002 - all take a turn
        """Wait for a turn."""
        with self._turns:
            return run()
