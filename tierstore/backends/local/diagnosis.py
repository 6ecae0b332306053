"""What `tierstore doctor` says about the disk below a local tier."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

from tierstore.backend import Check
from tierstore.backends.local.direct_io import set_direct

_LITTLE = 0.1  # of the disk
_GIB = 1024**3
IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")


def diagnose(root: str) -> Iterator[Check]:
    """Yield findings on the file system of `root`, which need not exist yet."""
    while not os.path.isdir(root):
        root = os.path.dirname(root)
    kind = kind_of(root)
    yield _medium(kind)
    yield _direct(root, in_memory=kind in IN_MEMORY)
    yield _space(root)


def kind_of(folder: str) -> str:
    """Return the file system's kind, such as "ext4"; empty if the system does not tell."""
    try:
        device = os.stat(folder).st_dev
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                mount, _, rest = line.partition(" - ")
                if mount.split()[2] == f"{os.major(device)}:{os.minor(device)}":
                    return rest.split()[0]
    except OSError:
        pass
    return ""


def _medium(kind: str) -> Check:
    if kind in IN_MEMORY:
        return Check("medium", "ok", f"memory ({kind}): what is here is gone after a restart")
    return Check("medium", "ok", kind or "not told by this system")


def _direct(folder: str, *, in_memory: bool) -> Check:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if in_memory:  # some kernels accept the flag here; it means nothing
                return Check("O_DIRECT", "ok", "not needed in memory")
            if set_direct(file.fileno(), on=True):
                return Check("O_DIRECT", "ok", "bytes go past the page cache")
    except OSError as error:
        detail = f"no file can be made in {folder}: {error.strerror}"
        return Check("O_DIRECT", "failed", detail, "make the folder writable for this user")
    advice = "saves go through the page cache here; use ext4 or xfs for full speed"
    return Check("O_DIRECT", "warning", "the file system refuses it", advice)


def _space(folder: str) -> Check:
    try:
        disk = os.statvfs(folder)
    except OSError as error:
        detail = f"not told for {folder}: {error.strerror}"
        return Check("free space", "warning", detail, "look at the mount, and at its server")
    free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    detail = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB"
    if free < _LITTLE * total:
        return Check("free space", "warning", detail, "delete old checkpoints or use a larger disk")
    return Check("free space", "ok", detail)
