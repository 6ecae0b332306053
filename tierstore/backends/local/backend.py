"""A folder of a POSIX file system: NVMe, tmpfs, NFS, Lustre.

`file:///path` keeps the object of key `a/b` in the file `/path/a/b`, so that every tool can read
it. A key and a longer key below it (`a` and `a/b`) cannot both exist. Symbolic links below the root
are not followed when listing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import Literal, TypeVar
from urllib.parse import quote

from tierstore.backend import Capabilities, Check, ObjectInfo, check_whole
from tierstore.backends.local.diagnosis import diagnose
from tierstore.backends.local.direct_io import is_cached, read_at, set_direct, sync_tells
from tierstore.backends.local.errors import translated
from tierstore.backends.local.flush import Flushed
from tierstore.backends.local.folders import Folders, has_place
from tierstore.backends.local.links import link
from tierstore.backends.local.listing import told, walk
from tierstore.backends.local.scan import LocalScan
from tierstore.backends.local.scratch import NAME, Scratch
from tierstore.backends.local.upload import BLOCKED, LocalUpload, Site
from tierstore.blocks import BLOCK_SIZE, Buffer, crc32c
from tierstore.errors import (
    BlockedError,
    ConfigError,
    InvalidKeyError,
    TruncatedFileError,
)
from tierstore.keys import check_key
from tierstore.registry import declares, parse_url
from tierstore.regular import check_regular, open_regular
from tierstore.scan import Found, Ways

_CAPABILITIES = Capabilities(
    atomic_create=True,
    clean_create=True,
    parallel_parts=True,
    resumable_upload=True,
    needs_read_back=False,  # from memory to a disk of this host: no network is between
    durable_on_commit=True,
    max_part=1 << 62,
    max_parts=1 << 62,
    part_size=2 * BLOCK_SIZE,
    concurrency=min(8, 2 * len(os.sched_getaffinity(0))),
    keeps_alignment=True,
    flushes=sync_tells(),
    seen_by="host",
)
T = TypeVar("T")
_NAME_MAX = 255  # bytes
_MODE = re.compile(r"0?6[046]{2}")  # the owner reads and writes, nobody executes
_DIRECT_FROM = BLOCK_SIZE // 4  # smaller reads gain more from read-ahead


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """How files are read and written.

    Attributes:
        direct: "auto" bypasses the page cache for large requests where the file system allows it
            and, for reading, the data is not cached; "always" does so without looking at the cache
            and fails where it is refused; "never" does not.
        fsync: False only for tmpfs and tests: a crash of the host may then lose what was committed.
        mode: who may read and write files, such as "0640", whatever the umask; folders can be
            entered by who may read. None leaves both to the umask, as the system's tools do.
    """

    direct: Literal["auto", "always", "never"] = "auto"
    fsync: bool = True
    mode: str | None = None

    def __post_init__(self) -> None:
        if self.mode is not None and not _MODE.fullmatch(self.mode):
            raise ConfigError(
                f"'mode' is {self.mode!r}, which is no mode of files that their owner writes",
                hint='write "0600", or "0640" for the group to read them',
            )

    @property
    def bits(self) -> int | None:
        """The mode of files as a number."""
        return None if self.mode is None else int(self.mode, 8)


_DEFAULTS = LocalOptions()


@declares(LocalOptions)
def open_local(url: str, options: LocalOptions = _DEFAULTS) -> LocalBackend:
    """Open the folder of `file:///absolute/path`, which is created at the first write.

    Raises:
        ConfigError: the URL is wrong.
    """
    address = parse_url(url)
    if address.scheme != "file" or address.host not in ("", "localhost") or not address.path:
        raise ConfigError(f"{url!r} is not a folder", hint="write file:///absolute/path")
    return LocalBackend(address.path, options)


class LocalBackend:
    """Objects as files below one folder; see `open_local`.

    Args:
        root: the folder's path.
        options: how files are read and written.
    """

    def __init__(self, root: str, options: LocalOptions = _DEFAULTS) -> None:
        self._root = os.path.abspath(root)
        self.url = f"file://{quote(self._root, errors='surrogateescape')}"
        self._direct = options.direct
        self._capabilities = replace(_CAPABILITIES, durable_on_commit=options.fsync)
        folders = Folders(self._root, sync=options.fsync, mode=options.bits)
        self._site = Site(self.url, folders, Scratch(folders), options.fsync)
        self._hasty = Flushed(self._site)

    @property
    def capabilities(self) -> Capabilities:
        """See `tierstore.backend.Capabilities`."""
        return self._capabilities

    def local_path(self, key: str) -> str:
        """Return where the file of `key` is or would be, for mapping it into memory.

        Raises:
            InvalidKeyError: a component is longer than 255 bytes or reserved.
        """
        check_key(key)
        long = len(key) > _NAME_MAX // 4 and any(  # a character takes four bytes at most
            len(part.encode()) > _NAME_MAX for part in key.split("/")
        )
        if long or (NAME in key and NAME in key.split("/")):
            raise InvalidKeyError(f"key {key!r} cannot be a file name")
        return os.path.join(self._root, key)

    def stat(self, key: str) -> ObjectInfo:
        """See `tierstore.backend.Backend.stat`."""
        with self._translated(key):
            status = os.stat(self.local_path(key))
            check_regular(status.st_mode)
        return told(key, status)

    def list(
        self, prefix: str, *, after: str | None = None, delimiter: bool = False
    ) -> Iterator[ObjectInfo]:
        """See `tierstore.backend.Backend.list`; a missing root has no objects."""
        return self._naming(walk(self._root, prefix, after or "", delimiter=delimiter), prefix)

    def scan(self, ways: Ways, *, after: str | None = None) -> Iterator[Found]:
        """See `tierstore.scan.scan`."""
        return self._naming(LocalScan(self._root, ways, after or "").found(), "")

    def check_key(self, key: str) -> None:
        """Raise InvalidKeyError of a key that cannot be a file here."""
        self.local_path(key)

    def check_place(self, key: str) -> None:
        """Raise what writing an object of this key would, as far as it shows without writing."""
        path = self.local_path(key)
        with self._translated(key):
            if not has_place(path):
                raise BlockedError(BLOCKED, url=self.url, key=key)

    def _naming(self, found: Iterator[T], prefix: str) -> Iterator[T]:
        """Yield what is found; an error names the folder that it is of."""
        while True:
            try:
                item = next(found, None)
            except OSError as error:
                path = os.fsdecode(error.filename or "")
                where = os.path.relpath(path, self._root) if path else prefix
                with self._translated("" if where == "." else where):
                    raise
            if item is None:
                return
            yield item

    def read_into(self, key: str, offset: int, *buffers: memoryview) -> None:
        """See `tierstore.backend.Backend.read_into`; aligned or cached bytes are not copied."""
        length = sum(buffer.nbytes for buffer in buffers)
        with self._translated(key):
            fd = open_regular(self.local_path(key))
            try:
                size = os.fstat(fd).st_size
                if offset + length > size:
                    raise TruncatedFileError(
                        f"{self.url}/{key}: has {size} bytes, "
                        f"bytes {offset} to {offset + length} are wanted"
                    )
                if self._reads_direct(fd, offset, length):
                    set_direct(fd, on=True)
                count = read_at(fd, buffers, offset)
            finally:
                os.close(fd)
        if count < length:
            raise TruncatedFileError(f"{self.url}/{key}: ended at byte {offset + count}")

    def fetch(self, key: str, buffer: memoryview) -> ObjectInfo:
        """See `tierstore.backend.Backend.fetch`."""
        with self._translated(key):
            fd = open_regular(self.local_path(key))
            try:
                count = os.fstat(fd).st_size
                if count == buffer.nbytes:
                    count = read_at(fd, [buffer], 0)
                status = os.fstat(fd)  # of the very file that was read, once it was
            finally:
                os.close(fd)
        info = told(key, status)
        if count != buffer.nbytes:
            info = replace(info, size=count)
        return check_whole(self.url, info, buffer)

    def create(
        self, key: str, buffer: Buffer, *, if_absent: bool = False, durable: bool = True
    ) -> ObjectInfo:
        """See `tierstore.backend.Backend.create`."""
        size = memoryview(buffer).nbytes
        path = self.local_path(key)
        with self._translated(key, size):
            hasty = not durable and self._hasty.reaches(path)
            if hasty and if_absent and (status := self._hasty.create(path, buffer)):
                return told(key, status)
            site = self._hasty.site() if hasty else self._site
        upload = LocalUpload(site, key, path, size, "never")
        try:
            if size:
                upload.write(0, buffer, crc32c(buffer))
            return upload.commit(if_absent=if_absent)
        finally:
            upload.abort()

    def flush(self) -> None:
        """See `tierstore.backend.Backend.flush`: one sync of the whole file system."""
        with self._translated(""):
            self._hasty.flush()

    def upload(
        self, key: str, size: int | None = None, *, resume: str | None = None
    ) -> LocalUpload:
        """See `tierstore.backend.Backend.upload`; for a week somebody can go on with it.

        Raises:
            NotFoundError: the upload to resume was committed, aborted, or forgotten.
        """
        path = self.local_path(key)
        return LocalUpload(self._site, key, path, size, self._direct, resume=resume or "")

    def adopt(self, key: str, path: str, size: int) -> ObjectInfo | None:
        """See `tierstore.backend.adopt`: a link, on the same file system."""
        place = self.local_path(key)
        with self._translated(key, size):
            status = link(path, place, size, self._site.folders)
        return None if status is None else told(key, status)

    def delete(self, keys: Iterable[str]) -> None:
        """See `tierstore.backend.Backend.delete`; folders left empty are removed.

        Also those of keys that are gone: deleting again completes what was interrupted.
        """
        parents = set()
        for key in keys:
            path = self.local_path(key)
            parents.add(os.path.dirname(path))
            with (
                self._translated(key),
                suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError),
            ):
                os.unlink(path)
        for parent in sorted(parents, key=len, reverse=True):
            self._site.folders.prune(parent)

    def diagnose(self) -> Iterator[Check]:
        """Yield what `tierstore doctor` shall say about the disk."""
        return diagnose(self._root)

    def close(self) -> None:
        """Abort the uploads that are still open and whose token nobody has asked for."""
        for upload in self._site.uploads.copy():
            upload.let_go()
        self._hasty.close()
        self._site.scratch.tidy()

    def _reads_direct(self, fd: int, offset: int, length: int) -> bool:
        if self._direct != "auto":
            return self._direct == "always"
        return length >= _DIRECT_FROM and not is_cached(fd, offset, length)

    def _translated(self, key: str, needed: int = 0) -> AbstractContextManager[None]:
        return translated(self.url, key, self._root, needed)
