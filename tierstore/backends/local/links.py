"""A file that lies on the tier's own file system becomes an object by a second name."""

from __future__ import annotations

import errno
import os
import stat

from tierstore.backends.local.folders import Folders, sync_folder

# Another file system; one without links; a name that is taken; too many names.
_CANNOT = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EEXIST, errno.EMLINK)


def link(source: str, place: str, size: int, folders: Folders) -> os.stat_result | None:
    """Give a file of this user and of `size` bytes a second name; None where that cannot be.

    Raises:
        OSError: the folder cannot be made.
    """
    folder = os.path.dirname(place)
    while True:
        folders.ensure(folder)
        try:
            status = os.lstat(source)
            ours = status.st_uid == os.geteuid() and status.st_size == size
            if not (ours and stat.S_ISREG(status.st_mode)):
                return None
            os.chmod(source, _mode(folder, folders))
            os.link(source, place, follow_symlinks=False)
            break
        except FileNotFoundError:
            if os.path.isdir(folder):  # else it was pruned
                raise
        except OSError as error:
            if error.errno == errno.EEXIST and os.path.samestat(status, os.lstat(place)):
                break  # a request that is repeated
            if error.errno not in _CANNOT:
                raise
            return None
    sync_folder(folder)
    return os.stat(place)


def _mode(folder: str, folders: Folders) -> int:
    """Return the mode that a new file has there."""
    fd = folders.open_new(folder, os.O_RDWR | os.O_TMPFILE)
    try:
        return stat.S_IMODE(os.fstat(fd).st_mode)
    finally:
        os.close(fd)
