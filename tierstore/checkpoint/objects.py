"""Whole objects, read at once: records, fragments, manifests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tierstore.backend import Backend, ObjectInfo
from tierstore.blocks import Buffer
from tierstore.errors import FormatError, TierstoreError, TransientError, TruncatedFileError

T = TypeVar("T")
R = TypeVar("R")

RECORD = 1024**2
"""Bytes that a commit or a claim may have; a commit of 100,000 ranks has 0.6 MB."""

FRAGMENT = 1024**3
"""Bytes that a fragment may have; one of a million chunks has 52 MB."""

MANIFEST = 16 * 1024**3
"""Bytes that a manifest may have; one of a million chunks has 52 MB."""


def read_record(backend: Backend, key: str, *, limit: int = RECORD) -> bytes:
    """Return a small object that may be replaced at any time by one of another size.

    Args:
        backend: the tier.
        key: the object.
        limit: bytes that it may have.

    Raises:
        NotFoundError: there is none.
        FormatError: it is larger.
    """
    info = backend.stat(key)
    while True:
        check_size(info, limit)
        buffer = bytearray(info.size)
        try:
            if info.size:
                backend.read_into(key, 0, memoryview(buffer))
            return bytes(buffer)
        except TruncatedFileError:
            again = backend.stat(key)
            if again.size == info.size:
                raise
            info = again


def check_size(info: ObjectInfo, limit: int) -> None:
    """Refuse to read an object whole that cannot be what it should be.

    Raises:
        FormatError: it has more than `limit` bytes.
    """
    if info.size > limit:
        raise FormatError(
            f"{info.key} has {info.size:,} bytes, more than the {limit:,} it may have"
        )


def read_objects(
    backend: Backend, objects: Sequence[ObjectInfo], *, limit: int = FRAGMENT
) -> list[bytearray]:
    """Return whole objects, several of them and several pieces of each at a time.

    Args:
        backend: the tier.
        objects: what to read.
        limit: bytes that each may have.

    Raises:
        NotFoundError: one is gone.
        TruncatedFileError: one is shorter than its `size`.
        FormatError: one is larger than `limit`.
    """
    for info in objects:
        check_size(info, limit)
    buffers = [bytearray(info.size) for info in objects]
    _fill(backend, {info.key: memoryview(b) for info, b in zip(objects, buffers, strict=True)})
    return buffers


def _fill(backend: Backend, objects: dict[str, memoryview]) -> None:
    step = backend.capabilities.read_size
    pieces = [
        (key, offset, buffer[offset : offset + step])
        for key, buffer in objects.items()
        for offset in range(0, len(buffer), step)
    ]
    _spread(backend, lambda piece: backend.read_into(*piece), pieces)


def read_each(
    backend: Backend, objects: Sequence[ObjectInfo], parse: Callable[[Buffer, str], R]
) -> list[R | TierstoreError]:
    """Return small records, several read at a time, or of each why it cannot be read.

    Args:
        backend: the tier.
        objects: what to read.
        parse: makes a record of its bytes and its key.

    Raises:
        TransientError: the tier does not answer.
    """

    def read(info: ObjectInfo) -> R | TierstoreError:
        try:
            return parse(read_objects(backend, [info], limit=RECORD)[0], info.key)
        except TransientError:
            raise
        except TierstoreError as error:
            return error

    return _spread(backend, read, objects)


def _spread(backend: Backend, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Do the same with each item, as many at a time as serve the tier well."""
    width = min(len(items), backend.capabilities.concurrency)
    if width <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(width, "tierstore-read") as pool:
        try:
            return list(pool.map(work, items))
        finally:
            pool.shutdown(cancel_futures=True)


def read_object(backend: Backend, key: str, size: int) -> Buffer:
    """Return a whole object that never changes.

    It is read, on a local disk too: where a mapped file is cut short, or the disk fails, the next
    look at it would be SIGBUS. 52 MB take 10 ms of CPU more.

    Raises:
        NotFoundError: there is none.
        TruncatedFileError: its size is another.
        FormatError: it is larger than a manifest may be.
    """
    import numpy as np

    info = backend.stat(key)
    if info.size != size:
        raise TruncatedFileError(f"{key} has {info.size} bytes instead of {size}")
    check_size(info, MANIFEST)
    buffer = np.empty(size, np.uint8).data  # in huge pages, and not cleared first
    _fill(backend, {key: buffer})
    return buffer


def sizes_in(backend: Backend, folder: str) -> dict[str, int]:
    """Return the sizes of the objects right in a folder, by name; `folder` ends in "/"."""
    found: Iterable[ObjectInfo] = backend.list(folder, delimiter=True)
    return {info.key.removeprefix(folder): info.size for info in found if info.key[-1] != "/"}
