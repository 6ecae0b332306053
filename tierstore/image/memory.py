"""Memory for one image: a mapped file in tmpfs, or an anonymous mapping.

Who may do what with a pool file is held by `flock`, which the kernel drops when a process dies:

- The owner holds a shared lock for as long as it has the file. Readers in other processes (a DCP
  save process, an agent) hold one while they map it, and after taking it look the path up again:
  it may have been removed in between.
- An exclusive lock, never waited for, shows that nobody else has the file. The owner takes it
  before it stages again; any pool takes it to remove what dead processes have left.
- A file is never truncated or replaced in place, only unlinked: who maps it keeps its pages.

Behind the image lies one page more; its first byte tells the owner whether a borrower is done.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import re
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tierstore.blocks import ALIGNMENT
from tierstore.errors import (
    DeadlineError,
    NotFoundError,
    OutOfSpaceError,
    StorageError,
    TruncatedFileError,
)
from tierstore.image.capacity import available_memory, tmpfs_room
from tierstore.logs import logger
from tierstore.regular import open_regular

_libc = ctypes.CDLL(None, use_errno=True)
_log = logger(__name__)

FREE, LENT, OPENED = 0, 1, 2
"""States of a borrowed image: the borrower is done, has not opened it yet, has it open."""

_PIECE = 16 * 1024**2
_MOST_THREADS = 8
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, madvise(2)
_NAME = re.compile(r"tierstore-([0-9]+)-[0-9]+-[0-9a-f]{16}\.image")


class Memory:
    """One mapping and, if it is shared, its open and locked file.

    Attributes:
        view: `size` writable bytes from a page boundary.
        size: bytes, a multiple of 4096.
        address: of the first byte.
        path: of the file, or None for an anonymous mapping.
        derived: whatever users make from this memory and want back with it.
    """

    def __init__(
        self, mapping: mmap.mmap, size: int, fd: int = -1, path: Path | None = None
    ) -> None:
        self._mapping = mapping
        self._fd = fd
        self._callbacks: list[Callable[[], None]] = []
        self.address = _address(mapping)
        self.view = memoryview(mapping)[:size]
        self.size = size
        self.path = path
        self.derived: dict[object, object] = {}

    @property
    def state(self) -> int:
        """`FREE`, `LENT` or `OPENED`; always `FREE` for an anonymous mapping."""
        return self._mapping[self.size] if self.path else FREE

    @state.setter
    def state(self, state: int) -> None:
        self._mapping[self.size] = state

    def unused(self) -> bool:
        """Whether no other process has the file open; then the owner may stage into it."""
        if self.path is None:
            return True
        # Changing a lock gives up the old one first, so a collector may slip in between: the path
        # is looked up again once the shared lock is back.
        alone = _lock(self._fd, fcntl.LOCK_EX)
        return _lock(self._fd, fcntl.LOCK_SH) and alone and _is_at(self._fd, self.path)

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
        if self.path and self._fd >= 0:
            if unlink:
                self.path.unlink(missing_ok=True)
            # The mapping has a duplicate of the descriptor, so closing this one unlocks nothing.
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        with suppress(BufferError):  # views of it are alive; the last one unmaps
            self.view.release()
            self._mapping.close()
        self.forget()

    def forget(self) -> None:
        """Close the descriptor, all that a forked child may do; the lock stays the parent's."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def create_anonymous(size: int) -> Memory:
    """Map `size` bytes that live as long as this process, already paged in.

    Raises:
        OutOfSpaceError: the system gives no more.
    """
    check_memory(size)
    try:
        return Memory(_paged_in(-1, size), size)
    except OSError as error:
        raise OutOfSpaceError(
            f"no memory for a staging image of {size} bytes: {error.strerror}",
            hint="raise the limit of address space, or save less per process",
        ) from error


def create_shared(directory: Path, size: int) -> Memory:
    """Map a new file of `size` bytes in `directory`, locked shared and already paged in.

    Raises:
        OSError: the file cannot be made, or has no room (ENOSPC).
        OutOfSpaceError: the memory limit leaves no room.
    """
    room = tmpfs_room(directory)
    if room is not None and size > room:
        raise OSError(errno.ENOSPC, f"{size} bytes are wanted, {room} may be used", str(directory))
    check_memory(size)
    fd, path = _new_file(directory)
    try:
        os.ftruncate(fd, size + ALIGNMENT)
        return Memory(_paged_in(fd, size + ALIGNMENT), size, fd, path)
    except BaseException:
        path.unlink(missing_ok=True)
        os.close(fd)
        raise


def open_shared(path: Path, size: int) -> Memory:
    """Map another process's image of at least `size` bytes, locked shared.

    Raises:
        NotFoundError: it has been removed.
        TruncatedFileError: it is smaller.
        DeadlineError: it stayed locked.
    """
    try:
        fd = open_regular(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise _gone(path) from error
    except OSError as error:
        raise StorageError(f"staging image {path}: {error.strerror}") from error
    try:
        deadline = time.monotonic() + 5
        while not _lock(fd, fcntl.LOCK_SH):
            # Exclusive locks are held for microseconds, or by one that removes the file.
            if time.monotonic() > deadline:
                raise DeadlineError(f"staging image {path} stayed locked for 5 s")
            time.sleep(0.001)
        if not _is_at(fd, path):
            raise _gone(path)
        held = os.fstat(fd).st_size - ALIGNMENT
        if held < size:
            raise TruncatedFileError(f"staging image {path} has {held} bytes instead of {size}")
        return Memory(_paged_in(fd, held + ALIGNMENT), held, fd, path)
    except BaseException:
        os.close(fd)
        raise


def collect_leftovers(directory: Path) -> list[Path]:
    """Remove this user's images that no living process has; return their paths."""
    removed: list[Path] = []
    uid = os.geteuid()
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            match = _NAME.fullmatch(entry.name)
            if match and int(match[1]) == uid and _collect(Path(entry.path), uid):
                removed.append(Path(entry.path))
    return removed


def _collect(path: Path, uid: int) -> bool:
    try:
        fd = open_regular(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if os.fstat(fd).st_uid != uid or not _lock(fd, fcntl.LOCK_EX):
            return False
        path.unlink(missing_ok=True)  # names are never used twice: this is the locked file
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


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


def _new_file(directory: Path) -> tuple[int, Path]:
    while True:
        name = f"tierstore-{os.geteuid()}-{os.getpid()}-{secrets.token_hex(8)}.image"
        path = directory / name
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        if _lock(fd, fcntl.LOCK_SH) and _is_at(fd, path):
            return fd, path
        os.close(fd)  # a collector came between; it removes the file


def _paged_in(fd: int, size: int) -> mmap.mmap:
    """Map a whole file, or anonymous memory if `fd` is -1, with all of its pages there.

    Raises:
        OSError: the file system has no room for them (ENOSPC). Touching such a page is SIGBUS.
    """
    flags = mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    mapping = mmap.mmap(fd, size, flags=flags)
    with suppress(OSError):  # a kernel without them
        mapping.madvise(mmap.MADV_HUGEPAGE)  # O_DIRECT takes a seventh of the CPU for them
    address = _address(mapping)

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
        mapping.close()
        if error.errno != errno.EINVAL:
            raise
        return _paged_in_by_one(fd, size, flags)
    return mapping


def _paged_in_by_one(fd: int, size: int, flags: int) -> mmap.mmap:
    """Do as `_paged_in` before Linux 5.14."""
    if fd >= 0:
        # In pieces: tmpfs starts a call anew when a signal comes, and a profiler's come for ever.
        for offset in range(0, size, _PIECE):
            os.posix_fallocate(fd, offset, min(_PIECE, size - offset))
    return mmap.mmap(fd, size, flags=flags | mmap.MAP_POPULATE)


def _address(mapping: mmap.mmap) -> int:
    # What is made from the buffer must be gone at once: it keeps the mapping from being closed.
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


def _lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _gone(path: Path) -> NotFoundError:
    return NotFoundError(
        f"staging image {path} has been removed", hint="its owner has died or closed its pool"
    )
