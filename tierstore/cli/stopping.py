"""Signals that stop what goes on, once, in good order."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

INTERRUPTED = 128
"""Added to a signal's number it is the exit status of who was stopped by it."""


@contextmanager
def stopped_by_signals(stop: Callable[[], None], seen: list[int]) -> Iterator[None]:
    """Have the first SIGINT or SIGTERM stop something, and the next one this process.

    Args:
        stop: stops it.
        seen: gets the signal's number.
    """

    def handle(number: int, _frame: object) -> None:
        seen.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)
        stop()

    before: dict[int, Any] = {
        number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
