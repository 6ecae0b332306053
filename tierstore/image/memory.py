"""Memory for one image: files in tmpfs mapped side by side, or an anonymous mapping.

The files are mapped one behind the other into one range of addresses, each from a page boundary, so
an image is one piece of memory however many files hold it. What lies behind a file's end in its
last page belongs to no file and is zero.

An image that is made for no shard is one file with one page more; the first byte of that tells the
owner whether a borrower is done.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tierstore.blocks import ALIGNMENT, Buffer
from tierstore.errors import OutOfSpaceError, StorageError, TruncatedFileError
from tierstore.image.capacity import available_memory, tmpfs_room
from tierstore.image.folder import ImageFolder, ShardName, gone
from tierstore.image.layout import FileSpan
from tierstore.logs import logger

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_log = logger(__name__)

FREE, LENT, OPENED = 0, 1, 2
"""States of a borrowed image: the borrower is done, has not opened it yet, has it open."""

_PIECE = 16 * 1024**2
_MOST_THREADS = 8
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, madvise(2)
_FIXED, _NORESERVE, _POPULATE = 0x10, 0x4000, 0x8000  # mmap(2)
_WHOLE = "image"


class Memory:
    """One mapping and, if it is shared, its open and locked folder.

    Attributes:
        view: `size` writable bytes from a page boundary.
        size: bytes, a multiple of 4096.
        spans: the files of a shard's segments; None if the image was made for no shard.
        address: of the first byte.
        path: of the folder, or None for an anonymous mapping.
        derived: whatever users make from this memory and want back with it.
    """

    def __init__(
        self,
        mapping: mmap.mmap,
        size: int,
        folder: ImageFolder | None = None,
        spans: Sequence[FileSpan] | None = None,
    ) -> None:
        self._mapping = mapping
        self._folder = folder
        self._described = False
        self._describing = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
        self.address = _address(mapping)
        self.view = memoryview(mapping)[:size]
        self.size = size
        self.spans = None if spans is None else tuple(spans)
        self.path = folder.path if folder else None
        self.derived: dict[object, object] = {}

    @property
    def lendable(self) -> bool:
        """Whether another process can borrow it."""
        return self._folder is not None and self.spans is None

    @property
    def state(self) -> int:
        """`FREE`, `LENT` or `OPENED`; always `FREE` for one that cannot be lent."""
        return self._mapping[self.size] if self.lendable else FREE

    @state.setter
    def state(self, state: int) -> None:
        self._mapping[self.size] = state

    def fits(self, size: int, spans: Sequence[FileSpan] | None) -> bool:
        """Whether an image of this size and these files can be staged here."""
        if self._folder is None:
            return self.size >= size
        return self.spans == (None if spans is None else tuple(spans)) and self.size >= size

    def unused(self) -> bool:
        """Whether no other process has the image open; then the owner may stage into it."""
        return self._folder is None or self._folder.alone()

    def describe(self, name: ShardName, data: Buffer) -> None:
        """Tell other processes which shard is staged here, unless the memory has gone."""
        with self._describing:
            if self._folder is not None:
                self._described = True
                self._folder.describe(name, data)

    def undescribe(self) -> None:
        """Take back what `describe` told: the bytes are needed no more, and will change."""
        with self._describing:
            if self._described and self._folder is not None:
                self._folder.forget()
            self._described = False

    def on_discard(self, callback: Callable[[], None]) -> None:
        """Have `callback` called before the memory is unmapped."""
        self._callbacks.append(callback)

    def discard(self, *, unlink: bool) -> None:
        """Unmap the memory, or leave that to whoever still has a view of it. Idempotent."""
        while self._callbacks:
            try:
                self._callbacks.pop()()
            except Exception:
                _log.exception("a callback of staging memory failed; the memory goes all the same")
        self.derived.clear()
        with self._describing:
            if self._folder is not None:
                if unlink:
                    self._folder.remove()
                self._folder.unlock()
            self.forget()
        with suppress(BufferError):  # views of it are alive; the last one unmaps
            self.view.release()
            self._mapping.close()

    def forget(self) -> None:
        """Close the folder, all that a forked child may do; the lock stays the parent's."""
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.close()


def create_anonymous(size: int) -> Memory:
    """Map `size` bytes that live as long as this process, already paged in.

    Raises:
        OutOfSpaceError: the system gives no more.
    """
    check_memory(size)
    try:
        mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            return Memory(_paged_in(mapping, []), size)
        except BaseException:
            mapping.close()
            raise
    except OSError as error:
        raise OutOfSpaceError(
            f"no memory for a staging image of {size} bytes: {error.strerror}",
            hint="raise the limit of address space, or save less per process",
        ) from error


def create_shared(directory: Path, size: int, spans: Sequence[FileSpan] | None = None) -> Memory:
    """Map new files of `size` bytes in all in `directory`, locked shared and already paged in.

    Args:
        directory: a tmpfs.
        size: bytes of the image, a multiple of 4096.
        spans: its files in order, if it is for a shard.

    Raises:
        OSError: a file cannot be made, or has no room (ENOSPC).
        OutOfSpaceError: the memory limit leaves no room.
    """
    room = tmpfs_room(directory)
    if room is not None and size > room:
        raise OSError(errno.ENOSPC, f"{size} bytes are wanted, {room} may be used", str(directory))
    check_memory(size)
    folder = ImageFolder.create(directory)
    try:
        files = [FileSpan(_WHOLE, size + ALIGNMENT, 0)] if spans is None else spans
        opened = []
        try:
            for name, length, offset in files:
                fd = folder.open_file(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
                opened.append((fd, length, offset))
                os.ftruncate(fd, length)
            mapping = _mapped(size + (ALIGNMENT if spans is None else 0), opened)
        finally:
            for fd, *_ in opened:
                os.close(fd)
        return Memory(mapping, size, folder, spans)
    except BaseException:
        folder.remove()
        folder.close()
        raise


def open_shared(path: Path, size: int) -> Memory:
    """Map another process's image of at least `size` bytes, which was made for no shard.

    Raises:
        NotFoundError: it has been removed.
        TruncatedFileError: it is smaller.
        DeadlineError: it stayed locked.
        StorageError: it cannot be opened.
    """
    folder = ImageFolder.open(path)
    try:
        try:
            fd = folder.open_file(_WHOLE, os.O_RDWR)
        except FileNotFoundError as error:
            raise gone(path) from error
        except OSError as error:
            raise StorageError(f"staging image {path}: {error.strerror}") from error
        try:
            held = os.fstat(fd).st_size - ALIGNMENT
            if held < size:
                raise TruncatedFileError(f"staging image {path} has {held} bytes instead of {size}")
            return Memory(_mapped(held + ALIGNMENT, [(fd, held + ALIGNMENT, 0)]), held, folder)
        finally:
            os.close(fd)
    except BaseException:
        folder.close()
        raise


def check_memory(size: int) -> None:
    """Refuse what would get this process killed.

    Raises:
        OutOfSpaceError: the memory limit leaves less than `size` bytes.
    """
    room = available_memory()
    if room is not None and size > room:
        raise OutOfSpaceError(
            f"a staging image of {size} bytes does not fit in memory: {room} bytes are left",
            hint="save over more processes, raise the memory limit, or stage fewer images",
        )


def _mapped(size: int, files: Sequence[tuple[int, int, int]]) -> mmap.mmap:
    """Map files, each a descriptor, its bytes and where it goes, with all of their pages there.

    Raises:
        OSError: the file system has no room for them (ENOSPC). Touching such a page is SIGBUS.
    """
    # Python's mapping owns the addresses: closing it unmaps the files that lie over it.
    size = -(-size // ALIGNMENT) * ALIGNMENT
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    mapping = mmap.mmap(-1, size, flags=flags)
    try:
        for file in files:
            _overlay(mapping, file, mmap.MAP_SHARED)
        return _paged_in(mapping, files)
    except BaseException:
        mapping.close()
        raise


def _overlay(mapping: mmap.mmap, file: tuple[int, int, int], flags: int) -> None:
    fd, size, offset = file
    at = _address(mapping) + offset
    access = mmap.PROT_READ | mmap.PROT_WRITE
    if size and _libc.mmap(at, size, access, flags | _FIXED, fd, 0) != at:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _paged_in(mapping: mmap.mmap, files: Sequence[tuple[int, int, int]]) -> mmap.mmap:
    """Have all pages of a mapping there; without `files` it is anonymous."""
    address, size = _address(mapping), len(mapping)
    with suppress(OSError):  # a kernel without them
        mapping.madvise(mmap.MADV_HUGEPAGE)  # O_DIRECT takes a seventh of the CPU for them

    def page_in(offset: int) -> None:
        at, length = ctypes.c_void_p(address + offset), ctypes.c_size_t(min(_PIECE, size - offset))
        if _libc.madvise(at, length, _POPULATE_WRITE):
            code = ctypes.get_errno()
            code = errno.ENOSPC if code == errno.EFAULT else code
            raise OSError(code, os.strerror(code))

    # The kernel clears 1.5 to 2 GB/s for one thread, for which a first save would stall.
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="tierstore-pages") as pool:
            list(pool.map(page_in, range(0, size, _PIECE)))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _page_in_by_one(mapping, files)
    return mapping


def _page_in_by_one(mapping: mmap.mmap, files: Sequence[tuple[int, int, int]]) -> None:
    """Do as `_paged_in` before Linux 5.14."""
    if not files:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _POPULATE
        _overlay(mapping, (-1, len(mapping), 0), flags)
    for fd, size, offset in files:
        # In pieces: tmpfs starts a call anew when a signal comes, and a profiler's come for ever.
        for at in range(0, size, _PIECE):
            os.posix_fallocate(fd, at, min(_PIECE, size - at))
        _overlay(mapping, (fd, size, offset), mmap.MAP_SHARED | _POPULATE)


def _address(mapping: mmap.mmap) -> int:
    # What is made from the buffer must be gone at once: it keeps the mapping from being closed.
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))
