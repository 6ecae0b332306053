"""SIGTERM: the machine is about to be taken away. The handler only sets a flag."""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from typing import Any

from tierstore.errors import ConfigError


class StopSignal:
    """Remembers that a SIGTERM came, and when; a forked child is ended by one, as without it.

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
        self._pid = os.getpid()
        self._handler = lambda _number, _frame: self._handle()
        self._previous: Any = signal.signal(signal.SIGTERM, self._handler)
        _open.add(self)

    def _handle(self) -> None:
        if os.getpid() == self._pid:
            self.note()
        else:  # it came before the child could put the earlier handler back
            self.close()
            signal.raise_signal(signal.SIGTERM)

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


_open: weakref.WeakSet[StopSignal] = weakref.WeakSet()


def _close_all() -> None:
    for each in list(_open):
        each.close()


os.register_at_fork(after_in_child=_close_all)
