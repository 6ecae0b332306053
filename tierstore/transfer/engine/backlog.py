"""Which of the objects that wait is begun next: the most urgent, of these the first. No I/O."""

from __future__ import annotations

import math
from collections import deque

from tierstore.transfer.engine.entries import Entry


class Backlog:
    """The objects that may be begun.

    Attributes:
        priority: of the next object; less than any other if there is none.
    """

    def __init__(self) -> None:
        self.priority = -math.inf
        self._lines: dict[int, deque[Entry]] = {}  # by priority; none is empty
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, entry: Entry, *, first: bool = False) -> None:
        """Take an object, behind all of its priority or before them."""
        line = self._lines.setdefault(entry.priority, deque())
        (line.appendleft if first else line.append)(entry)
        self._count += 1
        self.priority = max(self.priority, entry.priority)

    def pop(self) -> Entry:
        """Return the next object."""
        line = self._lines[int(self.priority)]
        entry = line.popleft()
        if not line:
            del self._lines[entry.priority]
            self.priority = max(self._lines, default=-math.inf)
        self._count -= 1
        return entry
