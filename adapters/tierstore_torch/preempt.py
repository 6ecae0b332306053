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

    There is one handler for all that are open, whatever the order in which they are closed.

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
        _open.add(self)
        _install()

    @property
    def is_ours(self) -> bool:
        """Whether it is this process's, and not of the one that forked it."""
        return os.getpid() == self._pid

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
        """Put the earlier handler back, after the last of them. Idempotent.

        Outside the main thread, where Python allows no handlers, the next signal does that.
        """
        _open.discard(self)
        if not _open:
            _restore()


_open: weakref.WeakSet[StopSignal] = weakref.WeakSet()
_previous: Any = None  # the handler before the first of them


def _handle(_number: int, _frame: object) -> None:
    """Tell all who are open: a process may have several runs, and stops with all of them."""
    told = [each for each in list(_open) if each.is_ours]
    for each in told:
        each.note()
    if not told and _restore():  # as when a child gets it that was forked just now
        signal.raise_signal(signal.SIGTERM)


def _install() -> None:
    global _previous  # noqa: PLW0603 - one per process, as the handler is
    if signal.getsignal(signal.SIGTERM) is not _handle:
        _previous = signal.signal(signal.SIGTERM, _handle)


def _restore() -> bool:
    """Put the earlier handler back, where that is allowed and nobody has put another one there."""
    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is _handle
    )
    if ours:
        signal.signal(signal.SIGTERM, _previous or signal.SIG_DFL)
    return ours


def _in_child() -> None:
    _open.clear()
    _restore()


os.register_at_fork(after_in_child=_in_child)
