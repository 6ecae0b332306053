"""The folder of one image in tmpfs: its files, its lock, and what says which shard it holds.

::

    /dev/shm/tierstore-<uid>-<pid>-<random>.image/
        00000-000.safetensors                      a segment, byte for byte as it will be stored
        <run>@<attempt>-<nonce>@<rank:05d>.shard   the description; there once the copy has ended

Who may do what is held by `flock` on the folder, which the kernel drops when a process dies:

- The owner holds a shared lock for as long as it has the image. Readers in other processes (a DCP
  save process, an agent) hold one while they look, and after taking it look the path up again: it
  may have been removed in between.
- An exclusive lock, never waited for, shows that nobody else has the image. The owner takes it
  before it stages again; any pool takes it to remove what dead processes have left.
- A file is never truncated or replaced in place, only unlinked: who maps it keeps its pages. One
  that a tier in the same tmpfs has taken by a link is the tier's, and never staged into again.

The description is written last and removed first. So what it describes is whole, and an image whose
owner died in the middle of the copy has none.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from tierstore.blocks import Buffer
from tierstore.errors import (
    AccessError,
    DeadlineError,
    InvalidKeyError,
    NotFoundError,
    StorageError,
)
from tierstore.keys import AttemptId, check_run
from tierstore.regular import check_regular

DEFAULT_DIRECTORY = "/dev/shm"  # noqa: S108 - tmpfs is what is wanted; folders are 0700, and new
_NAME = re.compile(r"tierstore-([0-9]+)-[0-9]+-[0-9a-f]{16}\.image")
_SHARD = re.compile(r"([^@/]{1,200})@([0-9a-f-]{1,60})@([0-9]{5})\.shard")
_PATIENCE = 5.0  # seconds; exclusive locks are held for microseconds, or by who removes the image


class ShardName(NamedTuple):
    """Whose shard an image holds; the name of its description.

    Attributes:
        run: the run.
        id: the attempt.
        rank: the rank.
    """

    run: str
    id: AttemptId
    rank: int

    def __str__(self) -> str:
        return f"{self.run}@{self.id}@{self.rank:05d}.shard"

    @classmethod
    def parse(cls, text: str) -> ShardName | None:
        """Return what `str` printed; None for any other name."""
        match = _SHARD.fullmatch(text)
        if match is None:
            return None
        try:
            return cls(check_run(match[1]), AttemptId.parse(match[2]), int(match[3]))
        except InvalidKeyError:
            return None


class ImageFolder:
    """An image's folder, open and locked shared until it is closed.

    Attributes:
        path: of the folder.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def create(cls, directory: Path) -> ImageFolder:
        """Make a new one in `directory`.

        Raises:
            OSError: it cannot be made.
        """
        while True:
            name = f"tierstore-{os.geteuid()}-{os.getpid()}-{secrets.token_hex(8)}.image"
            path = directory / name
            path.mkdir(mode=0o700)
            with suppress(FileNotFoundError):  # a collector came between; it removes the folder
                fd = _open(path)
                if _lock(fd, fcntl.LOCK_SH) and _is_at(fd, path):
                    return cls(path, fd)
                os.close(fd)

    @classmethod
    def open(cls, path: Path) -> ImageFolder:
        """Open what another process has made.

        Raises:
            NotFoundError: it has been removed.
            AccessError: it is another user's.
            DeadlineError: it stayed locked for 5 s.
            StorageError: it cannot be opened, or is no folder.
        """
        try:
            fd = _open(path)
        except FileNotFoundError as error:
            raise gone(path) from error
        except OSError as error:
            raise StorageError(f"staging image {path}: {error.strerror}") from error
        try:
            _await_shared(fd, path)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd)

    @classmethod
    def peek(cls, path: Path) -> ImageFolder:
        """Open one without a lock, to see what is there at this moment.

        Raises:
            AccessError: it is another user's.
            OSError: it cannot be opened, or is no folder.
        """
        fd = _open(path)
        try:
            _check_owner(os.fstat(fd), path)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd)

    def names(self) -> list[str]:
        """Return the names of its files, sorted; empty once it is removed."""
        with os.scandir(self._fd) as entries:
            return sorted(entry.name for entry in entries)

    def open_file(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Open one of its files, which is this user's and no link; return the descriptor.

        Raises:
            OSError: it cannot be opened, or is no file.
            AccessError: it is another user's.
        """
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=self._fd)
        try:
            status = os.fstat(fd)
            check_regular(status.st_mode)
            _check_owner(status, self.path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def shard(self) -> ShardName | None:
        """Return whose shard it holds whole; None while it holds none."""
        return next(filter(None, map(ShardName.parse, self.names())), None)

    def holds(self, shard: ShardName) -> bool:
        """Whether this shard is whole in it."""
        return str(shard) in self.names()

    def stat(self, name: str) -> os.stat_result:
        """Return the status of one of its files, or of a link itself."""
        return os.stat(name, dir_fd=self._fd, follow_symlinks=False)

    def describe(self, name: ShardName, data: Buffer) -> None:
        """Say that it holds a whole shard, or more about it.

        Args:
            name: whose.
            data: the description.

        Raises:
            OSError: there is no room for it.
        """
        unfinished = f".{name}"
        fd = self.open_file(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        os.rename(unfinished, str(name), src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def forget(self) -> None:
        """Take the description away: the bytes may change from now on."""
        for name in self.names():
            if name.endswith(".shard"):
                os.unlink(name, dir_fd=self._fd)

    def alone(self) -> bool:
        """Whether no other process has it open; then its owner may stage into it."""
        # Changing a lock gives up the old one first, so a collector may slip in between: the path
        # is looked up again once the shared lock is back.
        alone = _lock(self._fd, fcntl.LOCK_EX)
        return _lock(self._fd, fcntl.LOCK_SH) and alone and self._intact()

    def _intact(self) -> bool:
        """Whether it was not removed, and no tier has taken a file of it for its own."""
        links = (self.stat(name).st_nlink for name in self.names())
        return _is_at(self._fd, self.path) and all(count == 1 for count in links)

    def abandoned(self) -> bool:
        """Whether its owner is dead and nobody else has it; then it is locked exclusively."""
        return _lock(self._fd, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Unlink everything, the description first; whoever maps a file keeps its pages."""
        with suppress(OSError):
            self.forget()
            for name in self.names():
                os.unlink(name, dir_fd=self._fd)
            self.path.rmdir()  # names are never used twice: this is the locked folder

    def unlock(self) -> None:
        """Give the lock up, also for children that have inherited it."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close it, all that a forked child may do: the lock stays the parent's. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def image_paths(directory: Path) -> Iterator[Path]:
    """Yield where images of this user are, or what has the name of one."""
    uid = os.geteuid()
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            match = _NAME.fullmatch(entry.name)
            if match and int(match[1]) == uid:
                yield Path(entry.path)


def collect_leftovers(directory: Path) -> dict[Path, ShardName | None]:
    """Remove this user's images that no living process has; return whose shards they held."""
    removed: dict[Path, ShardName | None] = {}
    for path in list(image_paths(directory)):
        with suppress(OSError, AccessError), closing(ImageFolder.peek(path)) as folder:
            if folder.abandoned():
                removed[path] = folder.shard()
                folder.remove()
    return removed


def gone(path: Path) -> NotFoundError:
    """Return the error that tells that an image is not there any more."""
    return NotFoundError(
        f"staging image {path} has been removed", hint="its owner has died or closed its pool"
    )


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _await_shared(fd: int, path: Path) -> None:
    _check_owner(os.fstat(fd), path)
    deadline = time.monotonic() + _PATIENCE
    while not _lock(fd, fcntl.LOCK_SH):
        if time.monotonic() > deadline:
            raise DeadlineError(f"staging image {path} stayed locked for {_PATIENCE:g} s")
        time.sleep(0.001)
    if not _is_at(fd, path):
        raise gone(path)


def _check_owner(status: os.stat_result, path: Path) -> None:
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
        raise AccessError(f"staging image {path}: others than this user may have written it")


def _lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False
