"""Folders whose names survive a crash, and who may read what is in them.

A file's fsync does not store its name: the folder's entry needs its own fsync, and so does the
folder's entry in its parent (fsync(2)).
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

_RACES = 100  # prunes in a row before something else keeps a folder from being made


def sync_folder(path: str) -> None:
    """Make the entries of a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def has_place(path: str) -> bool:
    """Whether a file may have this name: no folder with files has it, no file that of its folder.

    Raises:
        PermissionError: nothing may be written there.
    """
    if os.path.isdir(path) and not os.path.islink(path):
        return not any(files for _, _, files in os.walk(path))
    folder = os.path.dirname(path)
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        return False
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
    return True


class Folders:
    """Creates and prunes the folders below one root. Safe between threads and processes.

    Args:
        root: the folder's path; created, with its parents, at first need.
        sync: fsync what is created.
        mode: of every file, whatever the umask; that of root and folders follows from it. None
            leaves both to the umask.
    """

    def __init__(self, root: str, *, sync: bool, mode: int | None = None) -> None:
        self.root = os.path.abspath(root)
        self.mode = mode
        self._sync = sync
        self._durable: dict[str, int] = {}  # folder -> inode; another one means recreated

    def ensure(self, folder: str) -> None:
        """Create `folder`; every name on the way to it from the root is durable afterwards.

        Raises:
            NotADirectoryError: a file is in the way.
        """
        for _ in range(_RACES):
            with suppress(FileNotFoundError):  # others prune what is empty
                return self._ensure(folder)
        return self._ensure(folder)

    def _ensure(self, folder: str) -> None:
        if self._known(folder):
            return
        parent = os.path.dirname(folder)
        if self._below(folder) or not os.path.isdir(parent):
            self._ensure(parent)
        made = self._make(folder)
        inode = os.stat(os.path.join(folder, "")).st_ino  # with "/": a file is an error
        # Another process may have made it and not synced it yet. Above the root that is not ours.
        if self._sync and (made or self._below(folder)):
            sync_folder(parent)
        self._durable[folder] = inode

    def open_new(self, path: str, flags: int) -> int:
        """Create a file, or one without a name in a folder, with the mode of files; return its fd.

        Raises:
            OSError: it cannot be created, or the file system has no modes.
        """
        fd = os.open(path, flags | os.O_CLOEXEC, 0o666 if self.mode is None else 0o600)
        if self.mode is not None:
            try:
                os.fchmod(fd, self.mode)
            except OSError:
                os.close(fd)
                raise
        return fd

    def _make(self, folder: str) -> bool:
        """Make a folder, unless it is there; what is above the root is not the tier's."""
        try:
            if self.mode is None or not (folder == self.root or self._below(folder)):
                os.mkdir(folder)
            else:
                mode = self.mode | (self.mode & 0o444) >> 2  # who may read may look into it
                os.mkdir(folder, 0o700)
                os.chmod(folder, mode | os.stat(folder).st_mode & stat.S_ISGID)
        except FileExistsError:
            return False
        return True

    def sync(self, folder: str) -> None:
        """Make the entries of `folder` durable; a folder that is gone has none."""
        if self._sync:
            try:
                sync_folder(folder)
            except FileNotFoundError:
                self._durable.pop(folder, None)

    def prune(self, folder: str) -> None:
        """Remove `folder` and its parents below the root, up to the first that is not empty."""
        while self._below(folder):
            self._durable.pop(folder, None)
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                pass  # an earlier try was interrupted
            except OSError:
                return
            folder = os.path.dirname(folder)

    def clear(self, folder: str) -> None:
        """Remove a folder, with its folders, if there is nothing else in it: it holds no objects.

        Raises:
            IsADirectoryError: it holds something.
        """
        inside = []
        for path, _, files in os.walk(folder):
            if files:
                break
            inside.append(path)
        else:
            for path in reversed(inside):
                self._durable.pop(path, None)
                with suppress(OSError):  # a link, or a file that has just come
                    os.rmdir(path)
        if os.path.isdir(folder):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), folder)

    def _below(self, folder: str) -> bool:
        return folder.startswith(self.root.rstrip("/") + "/")

    def _known(self, folder: str) -> bool:
        if folder not in self._durable:
            return False
        try:
            return os.stat(folder).st_ino == self._durable[folder]
        except (FileNotFoundError, KeyError):
            return False
