"""Reading and writing past the page cache, from and into the caller's memory.

Linux's O_DIRECT (open(2)) wants the memory's address, the file offset and the length to be
multiples of the page size. What is not goes through one small aligned buffer per thread. O_DIRECT
is a flag of the open file that is switched on and off here, so a file system that refuses it (some
overlays, old tmpfs) or a request that cannot be aligned falls back to buffered I/O by itself.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import re
import threading
from collections import deque
from collections.abc import Iterable
from itertools import islice

from tierstore.blocks import ALIGNMENT, BLOCK_SIZE, copy, cut

_BOUNCE = BLOCK_SIZE + ALIGNMENT  # an unaligned block still takes one request
_SAMPLE = 16 * ALIGNMENT
_MOST_BUFFERS = 1024  # IOV_MAX of readv(2)
_local = threading.local()
_libc = ctypes.CDLL(None, use_errno=True)


class _View(ctypes.Structure):
    """Py_buffer of CPython's buffer protocol; only the address is read."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("sizes", ctypes.c_ssize_t * 2),
        ("flags", ctypes.c_int * 2),
        ("rest", ctypes.c_void_p * 5),
    )


def is_direct(fd: int) -> bool:
    """Return whether `fd` bypasses the page cache."""
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


def set_direct(fd: int, on: bool) -> bool:
    """Switch O_DIRECT of `fd`; return whether the file system took it."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | (os.O_DIRECT if on else 0))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def write_at(fd: int, data: memoryview, offset: int, *, final: bool) -> None:
    """Write all of `data` at `offset`.

    Args:
        fd: a file opened for writing, direct or not.
        data: contiguous bytes.
        offset: in the file.
        final: `data` ends the file, so it may be padded with zeros to a whole page: truncate the
            file afterwards.
    """
    if offset % ALIGNMENT or (len(data) % ALIGNMENT and not final):
        set_direct(fd, on=False)  # padding would overwrite the neighbour
    while len(data):
        direct = is_direct(fd)
        try:
            count = os.pwrite(fd, _whole_pages(data) if direct else data, offset)
        except OSError as error:
            if error.errno != errno.EINVAL or not direct:
                raise
            set_direct(fd, on=False)
            continue
        count = min(count, len(data))
        data, offset = data[count:], offset + count
        if len(data) and offset % ALIGNMENT:  # a short write; padding is no longer safe
            set_direct(fd, on=False)


def read_at(fd: int, buffers: Iterable[memoryview], offset: int) -> int:
    """Fill the buffers, one behind the other, from `offset`.

    Returns:
        How many bytes there were, fewer than the buffers hold only at the end of the file.
    """
    rest = deque(buffer.cast("B") for buffer in buffers if buffer.nbytes)
    done = 0
    while rest:
        direct = is_direct(fd)
        try:
            if direct:
                count = _read_direct(fd, rest, offset + done)
            else:
                count = os.preadv(fd, list(islice(rest, _MOST_BUFFERS)), offset + done)
        except OSError as error:
            if error.errno != errno.EINVAL or not direct:
                raise
            set_direct(fd, on=False)
            continue
        if count <= 0:
            break
        done += count
        _drop(rest, count)
    return done


def reserve(fd: int, size: int) -> None:
    """Reserve `size` bytes of disk for the file, where the file system can (fallocate(2)).

    Not `os.posix_fallocate`: where the file system cannot, the C library writes to every page.

    Raises:
        OSError: the disk, the quota or the file-size limit is too small.
    """
    if size and _libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size)):
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(code, os.strerror(code))


def sync_file_system(fd: int) -> None:
    """Write all that the file system of an open folder has in memory to its disk (syncfs(2)).

    Raises:
        OSError: something that was written since the folder was opened could not be.
    """
    if _libc.syncfs(fd):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def sync_tells() -> bool:
    """Whether `sync_file_system` reports what could not be written: since Linux 5.8."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return found is not None and (int(found[1]), int(found[2])) >= (5, 8)


def is_cached(fd: int, offset: int, length: int) -> bool:
    """Return whether the range seems to be in the page cache, from both its ends (mincore(2)).

    `preadv(RWF_NOWAIT)` would answer too, but starts a read-ahead that fights the direct read.
    """
    start = offset // ALIGNMENT * ALIGNMENT
    try:
        mapping = mmap.mmap(fd, offset + length - start, prot=mmap.PROT_READ, offset=start)
    except ValueError:  # it was cut short just now, as whoever reads it finds out
        return False
    with mapping:  # which is only asked about: to look at it could be SIGBUS
        base, size = _address(mapping), len(mapping)
        last = (size - 1) // ALIGNMENT * ALIGNMENT
        return _resident(base, min(size, _SAMPLE)) and _resident(
            base + max(0, last - _SAMPLE), min(size, _SAMPLE)
        )


def _resident(address: int, length: int) -> bool:
    answer = (ctypes.c_ubyte * -(-length // ALIGNMENT))()
    if _libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(length), answer):
        return False
    return all(page & 1 for page in answer)


def _address(memory: memoryview | mmap.mmap) -> int:
    """Return where memory begins, be it read-only; NumPy could tell, but takes 0.1 s to import."""
    view = _View()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(memory), ctypes.byref(view), 0)
    try:
        return view.buf or 0
    finally:
        ctypes.pythonapi.PyBuffer_Release(ctypes.byref(view))


def _bounce() -> memoryview:
    buffer: memoryview | None = getattr(_local, "buffer", None)
    if buffer is None:
        buffer = _local.buffer = memoryview(mmap.mmap(-1, _BOUNCE))
    return buffer


def _whole_pages(data: memoryview) -> memoryview:
    if len(data) >= ALIGNMENT and _address(data) % ALIGNMENT == 0:
        return data[: len(data) // ALIGNMENT * ALIGNMENT]
    bounce = _bounce()
    count = min(len(data), _BOUNCE)
    padded = -(-count // ALIGNMENT) * ALIGNMENT
    copy(bounce[:count], data[:count])
    bounce[count:padded] = bytes(padded - count)
    return bounce[:padded]


def _read_direct(fd: int, rest: deque[memoryview], offset: int) -> int:
    first, skew = rest[0], offset % ALIGNMENT
    congruent = len(first) >= 2 * ALIGNMENT and _address(first) % ALIGNMENT == skew
    if congruent and not skew:
        return os.preadv(fd, [first[: len(first) // ALIGNMENT * ALIGNMENT]], offset)
    bounce = _bounce()
    # Where file and memory are congruent an edge is enough, then it goes straight.
    room = ALIGNMENT - skew if congruent else _BOUNCE - skew
    wanted = list(cut(rest, 0, room))
    total = sum(map(len, wanted))
    pages = -(-(skew + total) // ALIGNMENT) * ALIGNMENT
    total = min(os.preadv(fd, [bounce[:pages]], offset - skew) - skew, total)
    at = skew
    for part in cut(wanted, 0, total):
        copy(part, bounce[at : at + len(part)])
        at += len(part)
    return total


def _drop(rest: deque[memoryview], count: int) -> None:
    """Take `count` bytes off the front."""
    while count and count >= len(rest[0]):
        count -= len(rest.popleft())
    if count:
        rest[0] = rest[0][count:]
