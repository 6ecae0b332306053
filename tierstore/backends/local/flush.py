"""Files of a local tier that are made durable together: an fsync each costs more than they do."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import replace

from tierstore.backends.local.direct_io import sync_file_system, sync_tells
from tierstore.backends.local.folders import Folders
from tierstore.backends.local.scratch import existing
from tierstore.backends.local.upload import Site
from tierstore.blocks import Buffer


class Flushed:
    """Lends a way to write without an fsync, and syncs the file system once for all of it.

    Args:
        site: the tier, whose own way is lent where the kernel would not tell what a sync lost.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        folders = Folders(site.folders.root, sync=False, mode=site.folders.mode)
        hasty = replace(site, folders=folders, sync=False)
        self._hasty = hasty if site.sync and sync_tells() else None
        self._lock = threading.Lock()
        self._fd = -1

    def site(self) -> Site:
        """Return how to write a file that `flush` makes durable."""
        if self._hasty is None:
            return self._site
        with self._lock:
            if self._fd < 0:  # a sync tells of what went wrong since then
                self._site.folders.ensure(self._site.folders.root)
                self._fd = os.open(
                    self._site.folders.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                )
        return self._hasty

    def reaches(self, path: str) -> bool:
        """Whether `flush` makes a file durable: not where something is mounted below the root."""
        self.site()
        try:
            device = os.stat(existing(os.path.dirname(path))).st_dev
        except FileNotFoundError:  # pruned meanwhile
            return False
        return self._fd < 0 or device == os.fstat(self._fd).st_dev

    def create(self, path: str, buffer: Buffer) -> os.stat_result | None:
        """Create a small file that has no name until it is whole (O_TMPFILE, open(2)).

        Returns:
            Its status; None where something has this name, or this file system cannot do it.
        """
        site = self.site()
        try:
            fd = _unnamed(site.folders, os.path.dirname(path))
        except OSError:
            return None  # whoever does it the usual way finds out why
        try:
            rest = memoryview(buffer)
            while rest.nbytes:
                rest = rest[os.write(fd, rest) :]
            with suppress(OSError):
                # With a descriptor given, though unused, Python follows the link (linkat(2)).
                os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd)
                return os.fstat(fd)
            return None
        finally:
            os.close(fd)

    def flush(self) -> None:
        """Make durable what was written so.

        Raises:
            OSError: some of it could not be; nobody knows which.
        """
        with self._lock:
            fd = os.dup(self._fd) if self._fd >= 0 else -1
        if fd >= 0:
            try:
                sync_file_system(fd)
            finally:
                os.close(fd)

    def close(self) -> None:
        """Release the descriptor. Idempotent."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _unnamed(folders: Folders, folder: str) -> int:
    """Open a new file without a name in a folder, which is made if it is not there."""
    flags = os.O_TMPFILE | os.O_WRONLY
    try:
        return folders.open_new(folder, flags)
    except FileNotFoundError:
        folders.ensure(folder)
        return folders.open_new(folder, flags)
