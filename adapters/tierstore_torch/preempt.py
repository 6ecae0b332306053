"""SIGTERM: the machine is about to be taken away. The handler only sets a flag."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

from tierstore.errors import ConfigError


class StopSignal:
    """Remembers that a SIGTERM came, and when.

    Args:
        seconds: how long after the signal this process may expect to live.

    Raises:
        ConfigError: this is not the main thread, where Python allows handlers.
    """

    def __init__(self, seconds: float) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise ConfigError(
                "sigterm_deadline needs the Checkpointer to be made in the main thread",
                hint="make it there, or leave sigterm_deadline out",
            )
        self._seconds = seconds
        self._came: float | None = None
        self._handler = lambda _number, _frame: self.note()
        self._previous: Any = signal.signal(signal.SIGTERM, self._handler)

    def note(self) -> None:
        """Count from now, if no signal came before."""
        if self._came is None:
            self._came = time.monotonic()

    @property
    def came(self) -> bool:
        """Whether this process has been told to stop."""
        return self._came is not None

    @property
    def time_left(self) -> float | None:
        """Seconds until the deadline; None before the signal."""
        if self._came is None:
            return None
        return max(0.0, self._came + self._seconds - time.monotonic())

    def close(self) -> None:
        """Put the earlier handler back. Idempotent; does nothing outside the main thread."""
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGTERM) is self._handler
        ):
            signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)
