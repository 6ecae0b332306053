"""A part of a stored file as a file of its own, of which little is read."""

from __future__ import annotations

import io
from typing import Any

from tierstore.backend import Backend

_PAGE = 16 * 1024


class Window(io.RawIOBase):
    """`length` bytes from `start` of a stored file; pages that were read are kept.

    Args:
        backend: where the file is.
        key: the file.
        start: the window's first byte in it.
        length: bytes.
    """

    def __init__(self, backend: Backend, key: str, start: int, length: int) -> None:
        self.key = key
        self.start = start
        self._backend = backend
        self._length = length
        self._at = 0
        self._pages: dict[int, bytearray] = {}

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where it is."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go there."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the window goes."""
        target = memoryview(buffer).cast("B")
        count = max(0, min(len(target), self._length - self._at))
        done = 0
        while done < count:
            number, skip = divmod(self._at, _PAGE)
            part = self._page(number)[skip : skip + count - done]
            target[done : done + len(part)] = part
            done += len(part)
            self._at += len(part)
        return count

    def whole(self) -> bytes:
        """Return all of it, in one request and none of it kept."""
        data = bytearray(self._length)
        if data:
            self._backend.read_into(self.key, self.start, memoryview(data))
        return bytes(data)

    def _page(self, number: int) -> bytearray:
        if number not in self._pages:
            first = number * _PAGE
            page = bytearray(min(_PAGE, self._length - first))
            self._backend.read_into(self.key, self.start + first, memoryview(page))
            self._pages[number] = page
        return self._pages[number]
