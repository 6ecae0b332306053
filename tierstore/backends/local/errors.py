"""What the operating system's errors mean for a tier."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from tierstore.errors import (
    AccessError,
    InvalidKeyError,
    NotFoundError,
    OutOfSpaceError,
    StorageError,
    TierstoreError,
    TransientError,
    UnsupportedError,
)
from tierstore.regular import NotRegularError

_KINDS: dict[int, tuple[type[StorageError], str]] = {
    errno.ENOENT: (NotFoundError, ""),
    errno.ENOTDIR: (NotFoundError, ""),
    errno.EISDIR: (NotFoundError, ""),
    errno.EACCES: (AccessError, "check the owner and the mode of the folder"),
    errno.EPERM: (AccessError, "check the owner, the mode and the mount options"),
    errno.EROFS: (AccessError, "the file system is mounted read-only"),
    errno.ENOSPC: (OutOfSpaceError, "delete old checkpoints or use a larger disk"),
    errno.EDQUOT: (OutOfSpaceError, "the disk quota is used up"),
    errno.EFBIG: (OutOfSpaceError, "raise the file-size limit (ulimit -f)"),
    errno.EOPNOTSUPP: (UnsupportedError, "the file system cannot do this"),
    errno.EXDEV: (UnsupportedError, "a tier's root must be on one file system"),
    errno.EMFILE: (TransientError, "raise the limit of open files (ulimit -n)"),
    errno.ENFILE: (TransientError, "the machine is out of open files"),
    errno.ESTALE: (TransientError, "the network file system lost the file"),
    errno.ETIMEDOUT: (TransientError, "the network file system does not answer"),
    errno.EAGAIN: (TransientError, "another program holds a lease on the file"),
    errno.EIO: (StorageError, "the disk failed; look at the kernel's log"),
}


@contextmanager
def translated(url: str, key: str, root: str, needed: int = 0) -> Iterator[None]:
    """Turn an OSError into the StorageError that it means.

    Args:
        url: the tier.
        key: the key in question.
        root: the folder, whose file system is asked what is left when there is not enough.
        needed: bytes that were wanted, for the message.

    Raises:
        StorageError: of the kind that fits.
        InvalidKeyError: the file system cannot hold such a long name.
    """
    try:
        yield
    except TierstoreError:
        raise
    except OSError as error:
        code = error.errno or 0
        reason = error.strerror or str(error)
        if code == errno.ENAMETOOLONG:
            raise InvalidKeyError(f"key {key!r} is too long for a file name") from error
        kind, hint = _KINDS.get(code, (StorageError, ""))
        if isinstance(error, NotRegularError):
            kind = NotFoundError
        if code == errno.ENOSPC and _no_inodes(os.path.join(root, key)):
            reason = "no inodes are left: the file system can hold no more files"
            hint = "delete small files, or make a file system with more inodes; `df -i` counts them"
        elif kind is OutOfSpaceError:
            reason = f"{reason}: {needed:,} bytes needed, {_free(os.path.join(root, key))} free"
        raise kind(reason, url=url, key=key, hint=hint) from error


def _free(path: str) -> str:
    usage = _usage(path)
    return "an unknown number" if usage is None else f"{usage.f_bavail * usage.f_frsize:,}"


def _no_inodes(path: str) -> bool:
    usage = _usage(path)
    return usage is not None and usage.f_files > 0 and usage.f_favail == 0


def _usage(path: str) -> os.statvfs_result | None:
    """Ask the file system that a path is on, or would be."""
    while True:
        try:
            return os.statvfs(path)
        except FileNotFoundError:
            path = os.path.dirname(path)
        except OSError:
            return None
