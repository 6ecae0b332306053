"""Small objects made durable many at once, before anybody believes that they arrived.

While one flush is under way the next objects are written, and the next flush takes all of them: the
slower the disk, the more at once (group commit).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from tierstore.errors import TierstoreError
from tierstore.logs import logger
from tierstore.transfer.engine import messages as m

_TOGETHER = 0.1  # seconds: a sync costs the disk about as much as so many small files
_log = logger(__name__)


class Flusher:
    """Holds back the answers about objects that were created without being durable yet.

    Args:
        flush: makes durable all that was created before it was called.
        put: takes events.
    """

    def __init__(self, flush: Callable[[], None], put: Callable[[m.Event], None]) -> None:
        self._flush, self._put = flush, put
        self._held: list[m.Copied] = []
        self._changed = threading.Condition()
        self._closed = threading.Event()

    def put(self, answer: m.Copied) -> None:
        """Pass an answer on when it is true."""
        self._put(m.Flushing(answer.job))
        with self._changed:
            self._held.append(answer)
            if len(self._held) == 1:  # otherwise it is awake
                self._changed.notify()

    def run(self) -> None:
        """Flush again and again, until `close`."""
        while held := self._next():
            answers: list[m.Answer] = [*held]
            try:
                self._flush()
            except TierstoreError as error:
                answers = [m.Failed(each.job, str(error), fatal=True) for each in held]
            except Exception as error:
                _log.exception("the destination could not be flushed")
                why = f"{type(error).__name__}: {error}"
                answers = [m.Failed(each.job, why, fatal=True) for each in held]
            for answer in answers:
                self._put(answer)

    def close(self) -> None:
        """Have `run` return once nothing is held back."""
        with self._changed:
            self._closed.set()
            self._changed.notify()

    def _next(self) -> list[m.Copied]:
        """Wait for an answer, and for what comes close behind it; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._held or self._closed.is_set())
        self._closed.wait(_TOGETHER)
        with self._changed:
            held, self._held = self._held, []
            return held
