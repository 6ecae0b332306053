"""Files that have no name yet: where an object is written before it becomes visible.

They are in a folder at the root, `.tierstore-tmp`, which is never listed; it goes when it is empty.
link(2) and rename(2) publish them, which do not go from one mount to another; where something is
mounted below the root, files for there have such a folder at its top. The writer holds a flock(2):
a file whose lock is free was left by a process that died, and the next writer removes it, unless it
can be resumed: see `tierstore.backends.local.parts`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import socket
import threading
from contextlib import suppress

from tierstore.backends.local.folders import Folders
from tierstore.backends.local.parts import SUFFIX, PartsList, is_kept
from tierstore.logs import logger
from tierstore.regular import open_regular

NAME = ".tierstore-tmp"
_FOREIGN_AGE = 3600.0  # where flock is local to a host, only age tells about other hosts
_NAME = re.compile(r"[^/\0]{1,200}-[0-9a-f]{16}")
_log = logger(__name__)


class Scratch:
    """The folder of unfinished files of one root, or of a mount below it.

    Args:
        folders: those of the root.
        top: where what is mounted begins; by default the root.
    """

    def __init__(self, folders: Folders, top: str = "") -> None:
        self._folders = folders
        self._top = top or folders.root
        self._path = os.path.join(self._top, NAME)
        self._mounts: dict[str, Scratch] = {}
        self._host = socket.gethostname().replace("/", "_")
        self._swept = self._used = False
        self._lock = threading.Lock()

    def beside(self, path: str) -> Scratch:
        """Return the one from which a file can be renamed to `path`."""
        while True:
            with suppress(FileNotFoundError):  # a folder was pruned while it was looked at
                return self._beside(path)

    def _beside(self, path: str) -> Scratch:
        folder = existing(os.path.dirname(path))
        mount = _mount(folder)
        if len(folder) <= len(self._top) or mount == _mount(existing(self._top)):
            return self
        while mount == _mount(above := os.path.dirname(folder)):
            folder = above
        with self._lock:
            return self._mounts.setdefault(folder, Scratch(self._folders, folder))

    def tidy(self) -> None:
        """Remove the folder if it is empty, and if anything was in it for this writer."""
        with self._lock:
            mounts = [*self._mounts.values()]
        for each in mounts:
            each.tidy()
        if self._used:
            with suppress(OSError):
                os.rmdir(self._path)

    def open(self) -> tuple[int, str]:
        """Create and lock a new file; return its descriptor, for reading and writing, and path."""
        self._used = True
        while True:
            path = os.path.join(self._path, f"{self._host}-{secrets.token_hex(8)}")
            try:
                fd = self._folders.open_new(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            except FileNotFoundError:
                self._folders.ensure(self._path)
                continue
            try:
                _lock(fd, wait=True)
                status = os.fstat(fd)
                self._sweep_once(now=status.st_mtime)
            except BaseException:
                os.close(fd)
                with suppress(FileNotFoundError):
                    os.unlink(path)
                raise
            if status.st_nlink:
                return fd, path
            os.close(fd)  # a sweep was faster than the lock

    def reopen(self, name: str) -> tuple[int, str]:
        """Open the file of an upload that another process began; return as `open`.

        Raises:
            FileNotFoundError: it is gone.
        """
        self._used = True
        if not _NAME.fullmatch(name):  # a journal says it
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        path = os.path.join(self._path, name)
        fd = open_regular(path, os.O_RDWR | os.O_NOFOLLOW)
        _lock(fd, wait=False)  # for the sweep; two that write alike do no harm
        return fd, path

    def _sweep_once(self, now: float) -> None:
        with self._lock:
            if self._swept:
                return
            self._swept = True
        # Without the folder, which another process removed with our file, nothing was left.
        with suppress(FileNotFoundError), os.scandir(self._path) as entries:
            for entry in entries:
                self._sweep(entry.path, entry.name, now)

    def _sweep(self, path: str, name: str, now: float) -> None:
        if is_kept(path, now):
            return
        if name.endswith(SUFFIX):
            if not os.path.exists(path.removesuffix(SUFFIX)):
                with suppress(FileNotFoundError):
                    os.unlink(path)
            return
        try:
            fd = open_regular(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            return
        try:
            ours = name.startswith(f"{self._host}-")
            if _lock(fd, wait=False) and (ours or os.fstat(fd).st_mtime < now - _FOREIGN_AGE):
                os.unlink(path)
                PartsList(path).remove()
                _log.info("removed %s, left by a process that died", path)
        except OSError as error:
            _log.debug("cannot sweep %s: %s", path, error)
        finally:
            os.close(fd)


def existing(folder: str) -> str:
    """Return the folder, or the nearest above it that there is."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def _mount(folder: str) -> object:
    """Return what tells mounts apart, also two of one file system; see fdinfo in proc(5)."""
    fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
            return next(line for line in info if line.startswith(b"mnt_id:"))
    except (OSError, StopIteration):
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


def _lock(fd: int, *, wait: bool) -> bool:
    """Return whether the lock was taken; a file system without locks never gives one."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return False
        raise
    return True
