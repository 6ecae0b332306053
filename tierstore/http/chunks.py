"""Bodies that come in chunks, each with its size before it (RFC 9112, section 7.1)."""

from __future__ import annotations

import http.client
import re

from tierstore.errors import StorageError
from tierstore.http.head import BROKEN
from tierstore.http.receive import Inflow

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")
_MOST_TRAILERS = 100


class Chunks:
    """The chunks that are still to come.

    Attributes:
        over: the last one, and what follows it, was taken.
    """

    def __init__(self, inflow: Inflow) -> None:
        self.over = False
        self._inflow = inflow
        self._begun = False
        self._left = 0  # bytes of the chunk that is being read

    def readinto(self, view: memoryview) -> int:
        """Read some bytes, of one chunk at most; return how many, none at the end of the body.

        Raises:
            HTTPException: the connection ended before it.
            StorageError: what comes is no chunk.
        """
        if not self._left and not self.over:
            self._next()
        if self.over or not view.nbytes:
            return 0
        count = self._inflow.readinto(view[: self._left])
        if not count:
            raise http.client.IncompleteRead(b"")
        self._left -= count
        return count

    def _next(self) -> None:
        if self._begun and self._inflow.line():
            raise StorageError("a chunk of the answer is longer than it says", hint=BROKEN)
        self._begun = True
        size = _SIZE.fullmatch(self._inflow.line())
        if not size:
            raise StorageError("a chunk of the answer does not tell its size", hint=BROKEN)
        self._left = int(size[1], 16)
        if not self._left:
            self._trailers()

    def _trailers(self) -> None:
        """Take the lines after the last chunk, of which nobody wants to know anything."""
        for _ in range(_MOST_TRAILERS):
            if not self._inflow.line():
                self.over = True
                return
        raise StorageError(f"over {_MOST_TRAILERS} lines follow the answer", hint=BROKEN)
