"""Answers at a third of http.client's CPU time.

For a small object, parsing headers as e-mail and copying them cost more than all the rest. RFC 9112
says how an answer is framed; a body of a length that is not told is http.client's business.
"""

from __future__ import annotations

import http.client

from tierstore.blocks import Buffer
from tierstore.http.head import Headers
from tierstore.http.inflow import Inflow, Tap


class Answer:
    """An answer whose head was read, passing over interim ones.

    Attributes:
        status: the HTTP status.
        headers: all of them.
        length: bytes of the body that were not read yet; None if nobody knows.
        will_close: nothing can follow on this connection.

    Raises:
        HTTPException: what came is no answer.
    """

    def __init__(self, inflow: Inflow, method: str) -> None:
        self.status = 100
        while self.status < 200:
            lines = inflow.head()
            version, self.status = _status(lines[0])
        self.headers = Headers(lines[1:])
        self._inflow = inflow
        find = self.headers.get
        chunked = find("transfer-encoding", "").lower() == "chunked"
        length = find("content-length", "")
        self.length = int(length) if length.isdigit() and not chunked else None
        if self.status in (204, 304) or method == "HEAD":
            self.length = 0
        self.will_close = version == "HTTP/1.0" or "close" in find("connection", "").lower()
        self._rest: http.client.HTTPResponse | None = None
        if self.length is None:
            self.will_close = self.will_close or not chunked
            self._rest = _unmeasured(inflow, method, chunked=chunked)

    def isclosed(self) -> bool:
        """Whether all of it was read."""
        return self._rest.isclosed() if self._rest else not self.length

    def readinto(self, buffer: Buffer) -> int:
        """Read some of the body; return how many bytes, none at its end or the connection's."""
        if self._rest:
            return self._rest.readinto(buffer)
        view, left = memoryview(buffer), self.length or 0
        if view.nbytes > left:
            view = view[:left]
        count = self._inflow.readinto(view) if left else 0
        self.length = left - count
        return count

    def read(self, most: int | None = None) -> bytes:
        """Return the rest of the body, or what there is of so many bytes of it.

        Raises:
            IncompleteRead: the connection ended before all of the rest had come.
        """
        if self._rest:
            return self._rest.read(most)
        left = self.length or 0
        data, got = bytearray(left if most is None else min(left, most)), 0
        view = memoryview(data)
        while got < len(data) and (more := self.readinto(view[got:])):
            got += more
        if got < len(data) and most is None:
            raise http.client.IncompleteRead(bytes(view[:got]), len(data) - got)
        return bytes(view[:got])

    def close(self) -> None:
        """Read no more of it. Idempotent."""
        if self._rest:
            self._rest.close()


def _status(line: str) -> tuple[str, int]:
    version, _, rest = line.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise http.client.BadStatusLine(line[:80])
    return version, int(rest[:3])


def _unmeasured(inflow: Inflow, method: str, *, chunked: bool) -> http.client.HTTPResponse:
    """Return the body of an answer that does not tell how long it is."""
    rest = http.client.HTTPResponse(Tap(inflow), method=method)  # type: ignore[arg-type]
    rest.chunked, rest.chunk_left, rest.length = chunked, None, None
    return rest
