"""What `tierstore doctor` says about the disk below a local tier."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

from tierstore.backend import Check
from tierstore.backends.direct_io import set_direct

_LITTLE = 0.1  # of the disk
_GIB = 1024**3


def diagnose(root: str) -> Iterator[Check]:
    """Yield findings on the file system of `root`, which need not exist yet."""
    while not os.path.isdir(root):
        root = os.path.dirname(root)
    yield _direct(root)
    yield _space(root)


def _direct(folder: str) -> Check:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if set_direct(file.fileno(), on=True):
                return Check("O_DIRECT", "ok", "bytes go past the page cache")
    except OSError as error:
        detail = f"no file can be made in {folder}: {error.strerror}"
        return Check("O_DIRECT", "failed", detail, "make the folder writable for this user")
    advice = "saves go through the page cache here; use ext4 or xfs for full speed"
    return Check("O_DIRECT", "warning", "the file system refuses it", advice)


def _space(folder: str) -> Check:
    disk = os.statvfs(folder)
    free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    detail = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB"
    if free < _LITTLE * total:
        return Check("free space", "warning", detail, "delete old checkpoints or use a larger disk")
    return Check("free space", "ok", detail)
