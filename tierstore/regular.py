"""Opening a file that has to be one: a named pipe would be waited for, a device would be read."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotRegularError(OSError):
    """A named pipe, a socket or a device is where a file should be; `strerror` says which."""


def open_regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """Open a regular file, never waiting for anybody; return its descriptor.

    Args:
        path: the file, or a link to one.
        flags: of open(2).
        mode: of a file that is created, less the umask.

    Raises:
        IsADirectoryError: it is a folder.
        NotRegularError: it is something else that is no file.
        OSError: it cannot be opened.
    """
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, mode)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a pipe that nobody reads
            check_regular(Path(path).stat().st_mode)
        raise
    try:
        check_regular(os.fstat(fd).st_mode)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_regular(mode: int) -> None:
    """Refuse what is no file, by its mode.

    Raises:
        IsADirectoryError, NotRegularError: see `open_regular`.
    """
    kind = stat.S_IFMT(mode)
    text = f"is {_KINDS.get(kind, 'something else')}, not a file"
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, text)
    if kind != stat.S_IFREG:
        raise NotRegularError(errno.ENXIO, text)
