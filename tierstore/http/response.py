"""Answers at a third of http.client's CPU time, and by stricter rules.

For a small object, parsing headers as e-mail and copying them cost more than all the rest. RFC 9112
says how an answer is framed. One that can be read in two ways is not read at all.
"""

from __future__ import annotations

from tierstore.blocks import Buffer
from tierstore.errors import StorageError
from tierstore.http.chunks import Chunks
from tierstore.http.head import BROKEN, Head, Headers, parse_head, whole_number
from tierstore.http.receive import Inflow

_MOST_INTERIM = 16
_PIECE = 64 * 1024


class Answer:
    """An answer whose head was read, passing over interim ones.

    Attributes:
        status: the HTTP status.
        headers: all of them.
        told: what Content-Length says, also in an answer without a body; None if it is not there.
        length: bytes of the body that were not read yet; None if nobody knows.
        will_close: nothing can follow on this connection.

    Raises:
        HTTPException: what came is no answer.
        StorageError: it does not tell, or not in one way only, how long it is.
    """

    def __init__(self, inflow: Inflow, method: str) -> None:
        old, self.status, self.headers = _final(inflow)
        self.told = _length(self.headers)
        self.length: int | None
        self._inflow = inflow
        self._chunks = Chunks(inflow) if _chunked(self.headers) else None
        tunnel = method == "CONNECT" and 200 <= self.status < 300  # what follows is the tunnel's
        if self.status in (204, 304) or method == "HEAD" or tunnel:
            self.length, self._chunks = 0, None
        else:
            self.length = None if self._chunks else self.told
        keeps = "close" not in self.headers.get("connection", "").lower() and not old
        # With both a length and chunks, something in between may have read it otherwise.
        clear = self.length is not None or (self._chunks is not None and self.told is None)
        self.will_close = not (keeps and clear)

    def isclosed(self) -> bool:
        """Whether all of it was read."""
        return self._chunks.over if self._chunks else self.length == 0

    def readinto(self, buffer: Buffer) -> int:
        """Read some of the body; return how many bytes, none at its end or the connection's."""
        view, left = memoryview(buffer), self.length
        if self._chunks:
            return self._chunks.readinto(view)
        if left is None:
            return self._inflow.readinto(view)
        if view.nbytes > left:
            view = view[:left]
        count = self._inflow.readinto(view) if left else 0
        self.length = left - count
        return count

    def read(self, most: int) -> bytes:
        """Return the rest of the body, or so many bytes of it; less where the connection ends."""
        data = bytearray()
        piece = memoryview(
            bytearray(min(_PIECE, most, _PIECE if self.length is None else self.length))
        )
        while len(data) < most and (got := self.readinto(piece[: most - len(data)])):
            data += piece[:got]
        return bytes(data)


def _final(inflow: Inflow) -> Head:
    """Return the head of the answer itself."""
    for _ in range(_MOST_INTERIM):
        found = parse_head(inflow.head())
        if found.status >= 200:
            return found
        if found.status == 101:  # to which protocol? nobody asked for one
            break
    raise StorageError(f"the server answers {found.status} without end", hint=BROKEN)


def _length(headers: Headers) -> int | None:
    said = headers.get("content-length")
    if said is None:
        return None
    given = {each.strip() for each in said.split(",")}  # RFC 9110, section 8.6: equal ones are one
    length = whole_number(given.pop()) if len(given) == 1 else None
    if length is None:
        raise StorageError(f"the answer is {said[:40]!r} bytes long, it says", hint=BROKEN)
    return length


def _chunked(headers: Headers) -> bool:
    coding = headers.get("transfer-encoding")
    if coding is not None and coding.lower() != "chunked":
        raise StorageError(f"the answer is coded as {coding[:40]!r}", hint=BROKEN)
    return coding is not None
