"""Where the bytes of a file come from while they are being written to a tier.

A source lends a view of its bytes for the time of one request::

    with source.view(offset, length) as part:
        upload.write(offset, part, crc)

That time is what `Lease` counts: a staging image goes back to its pool when nobody looks at it any
more, so the next save can have it while slow tiers are still being fed from a faster one.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol


class StagedImage(Protocol):
    """Memory that holds a staged shard and can be given back."""

    @property
    def buffer(self) -> memoryview:
        """The bytes."""
        ...

    def release(self) -> None:
        """Give the memory back; nothing looks at `buffer` afterwards."""
        ...


class BlockSource(Protocol):
    """The bytes of one file."""

    def view(self, offset: int, length: int) -> AbstractContextManager[memoryview]:
        """Lend `length` bytes from `offset`; the view is valid inside the `with` only.

        Raises:
            RevokedError: at the end of the `with`, if a request failed and the bytes were wanted
                back meanwhile; the next view is of others.
        """
        ...


class Buffers(Protocol):
    """Memory that is lent for one request, such as `AlignedBuffers`."""

    def take(self, length: int) -> AbstractContextManager[memoryview]:
        """Lend `length` bytes; what they hold is undefined."""
        ...


class RevokedError(Exception):
    """The lease is over: read the bytes from a tier that has them."""


class MemorySource:
    """Bytes that the caller holds for as long as the source is used."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer

    @contextmanager
    def view(self, offset: int, length: int) -> Iterator[memoryview]:
        """See `BlockSource.view`."""
        yield from _lend(self._buffer[offset : offset + length])


class Readable(Protocol):
    """What objects are read from, such as a `Backend`."""

    def read_into(self, key: str, offset: int, buffer: memoryview) -> None:
        """See `Backend.read_into`."""
        ...


class StoredSource:
    """Bytes of an object of a store, read when they are asked for."""

    def __init__(self, backend: Readable, key: str, buffers: Buffers) -> None:
        self._backend, self._key, self._buffers = backend, key, buffers

    @contextmanager
    def view(self, offset: int, length: int) -> Iterator[memoryview]:
        """See `BlockSource.view`."""
        with self._buffers.take(length) as part:
            if length:
                self._backend.read_into(self._key, offset, part)
            yield part


def _lend(part: memoryview) -> Iterator[memoryview]:
    try:
        yield part
    finally:
        with suppress(BufferError):  # an error's frames may still point at it
            part.release()


class Lease:
    """A staging image that is given back once, when it is revoked and no view of it is open."""

    def __init__(self, image: StagedImage) -> None:
        self._image: StagedImage | None = image
        self._lock = threading.Lock()
        self._views = 0
        self.over = threading.Event()
        """Happens when views can be had no more."""

    @property
    def held(self) -> bool:
        """Whether views can still be had."""
        return not self.over.is_set()

    @contextmanager
    def view(self, offset: int, length: int) -> Iterator[memoryview]:
        """Lend bytes of the image.

        Raises:
            RevokedError: the image is needed elsewhere.
        """
        with self._lock:
            if self.over.is_set() or self._image is None:
                raise RevokedError
            buffer = self._image.buffer
            self._views += 1
        try:
            yield from _lend(buffer[offset : offset + length])
        finally:
            with self._lock:
                self._views -= 1
            self._give_back()

    def revoke(self) -> None:
        """Lend no more; release the image as soon as the last open view closes. Idempotent."""
        with self._lock:
            self.over.set()
        self._give_back()

    def _give_back(self) -> None:
        with self._lock:
            if not self.over.is_set() or self._views:
                return
            image, self._image = self._image, None
        if image is not None:
            image.release()


class AlignedBuffers:
    """Page-aligned buffers that are used again and again: touching fresh pages costs more than I/O.

    After a fork they are the parent's, and the child maps its own.

    Args:
        size: bytes of each buffer, unless more are asked for.
        limit: how many may exist; whoever wants one more waits.
    """

    def __init__(self, size: int, limit: int) -> None:
        self._size, self._limit = size, limit
        self._free: list[mmap.mmap | None] = [None] * limit  # None is yet to be made
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._returned = threading.Condition(self._lock)

    @contextmanager
    def take(self, length: int) -> Iterator[memoryview]:
        """Lend `length` bytes; what they hold is undefined."""
        with self._lock:
            if self._pid != os.getpid():
                self._pid, self._free = os.getpid(), [None] * self._limit
            while not self._free:
                self._returned.wait()
            buffer = self._free.pop()
        try:
            if buffer is None or len(buffer) < length:
                buffer = _map(max(self._size, length))
            yield from _lend(memoryview(buffer)[:length])
        finally:
            with self._lock:
                self._free.append(buffer)
                self._returned.notify()


def _map(size: int) -> mmap.mmap:
    """Map memory that requests cost the least CPU with, and that a fork does not touch."""
    mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        mapping.madvise(mmap.MADV_HUGEPAGE)
    # While a page is shared with a child, what O_DIRECT reads may end up in the child's (open(2)).
    mapping.madvise(mmap.MADV_DONTFORK)
    return mapping
