"""What a tier has to write, in which order.

First the saves that it took, one after the other. When there are none left, the newest one that it
owes: a save that it was too far behind to take, or that failed there for a reason that may pass. An
older one is not owed any more: of a tier that was down for an hour the newest step is wanted.

Each rank decides this alone, and all come to write the same. Which saves a tier gets they have
agreed on, so all know which is the newest: a rank that has written its part is done with it, one
that has not owes it until a newer save comes. So in the end all parts are there, and whoever
writes the last one commits.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from typing import Generic, TypeVar

S = TypeVar("S")
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 60.0


class Turns(Generic[S]):
    """The saves of one tier; see the module. Safe between threads.

    Args:
        backlog: saves that may wait.

    Attributes:
        late: what is owed and was handed out, until it is settled.
    """

    def __init__(self, backlog: int) -> None:
        self._backlog = backlog
        self._saves: deque[S] = deque()
        self._newest: S | None = None
        self._owed: S | None = None
        self.late: S | None = None
        self._due = 0.0
        self._pause = _FIRST_PAUSE
        self._closed = False
        self._changed = threading.Condition()

    @property
    def waiting(self) -> int:
        """How many saves wait."""
        return len(self._saves)

    @property
    def full(self) -> bool:
        """Whether no more are taken."""
        return len(self._saves) >= self._backlog

    @property
    def catching_up(self) -> bool:
        """Whether something that is owed is being written, or would be by now."""
        with self._changed:
            return self.late is not None or (self._owed is not None and self._left() <= 0)

    def put(self, save: S) -> None:
        """Let a save wait for its turn; nothing older is owed any more."""
        with self._changed:
            self._newest, self._owed = save, None
            self._saves.append(save)
            self._changed.notify()

    def skip(self, save: S) -> None:
        """Owe a save as soon as no others wait, instead of letting it wait with them."""
        with self._changed:
            self._newest = self._owed = save
            self._due, self._pause = 0.0, _FIRST_PAUSE
            self._changed.notify()

    def take(self) -> S | None:
        """Wait for the next save; None when all is over."""
        with self._changed:
            while True:
                if self._saves:
                    return self._saves.popleft()
                left = None if self._owed is None else self._left()
                if left is not None and left <= 0:
                    self.late, self._owed = self._owed, None
                    return self.late
                if self._closed:
                    return None
                self._changed.wait(left)

    def settle(self, save: S, *, again: bool) -> None:
        """Note how a save ended; one that failed, and may not the next time, is owed.

        The pauses between one try and the next double, up to a minute.
        """
        with self._changed:
            if save is self.late:
                self.late = None
            elif again:
                self._pause = _FIRST_PAUSE
            if save is not self._newest:
                return
            self._newest = save if again else None
            if again and not self._closed:
                self._owed = save
                self._due = time.monotonic() + self._pause * random.uniform(0.75, 1.25)
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
                self._changed.notify()

    def close(self) -> None:
        """Take no more: what waits, or is due, is still handed out."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _left(self) -> float:
        return self._due - time.monotonic()
