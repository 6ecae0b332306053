"""Folders whose names survive a crash.

A file's fsync does not store its name: the folder's entry needs its own fsync, and so does the
folder's entry in its parent (fsync(2)).
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress


def sync_folder(path: str) -> None:
    """Make the entries of a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Folders:
    """Creates and prunes the folders below one root. Safe between threads and processes.

    Args:
        root: the folder's path; created, with its parents, at first need.
        sync: fsync what is created.
    """

    def __init__(self, root: str, *, sync: bool) -> None:
        self.root = os.path.abspath(root)
        self._sync = sync
        self._durable: dict[str, int] = {}  # folder -> inode; another one means recreated

    def ensure(self, folder: str) -> None:
        """Create `folder`; every name on the way to it from the root is durable afterwards.

        Raises:
            NotADirectoryError: a file is in the way.
        """
        if self._known(folder):
            return
        parent = os.path.dirname(folder)
        if self._below(folder) or not os.path.isdir(parent):
            self.ensure(parent)
        try:
            os.mkdir(folder)
            made = True
        except FileExistsError:
            made = False
        inode = os.stat(os.path.join(folder, "")).st_ino  # with "/": a file is an error
        # Another process may have made it and not synced it yet. Above the root that is not ours.
        if self._sync and (made or self._below(folder)):
            sync_folder(parent)
        self._durable[folder] = inode

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
