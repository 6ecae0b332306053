"""Writing one file of a local tier, so that it is seen whole and durable or not at all."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tierstore.backend import ObjectInfo
from tierstore.backends.direct_io import reserve, set_direct, write_at
from tierstore.backends.folders import Folders
from tierstore.backends.local_errors import translated
from tierstore.backends.scratch import Scratch
from tierstore.blocks import BLOCK_SIZE, Buffer, combine, crc32c
from tierstore.errors import (
    AlreadyExistsError,
    DamagedInTransitError,
    NotFoundError,
    StorageError,
    TruncatedFileError,
    UnsupportedError,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Site:
    """Where and how the files of one local tier are written."""

    url: str
    folders: Folders
    scratch: Scratch
    sync: bool
    uploads: set[LocalUpload] = field(default_factory=set)  # that are open


class LocalUpload:
    """One unfinished file; see `tierstore.backend.Upload`.

    Args:
        site: the tier.
        key: the key to publish.
        path: the key's path.
        size: bytes of the whole object.
        direct: "always", "auto" or "never" bypass the page cache.
    """

    def __init__(self, site: Site, key: str, path: str, size: int, direct: str) -> None:
        self._site, self._key, self._path, self._size = site, key, path, size
        self._parts: dict[int, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._writers = 0
        self._over = False
        self._info: ObjectInfo | None = None
        self._scratch = ""
        with self._translated():
            self._fd, self._scratch = site.scratch.open()
        try:
            with self._translated():
                self._prepare(direct)
        except BaseException:
            self.abort()
            raise
        site.uploads.add(self)

    def _prepare(self, direct: str) -> None:
        reserve(self._fd, self._size)
        if direct != "never" and not set_direct(self._fd, on=True) and direct == "always":
            raise self._error(UnsupportedError, "the file system refuses O_DIRECT")

    @property
    def token(self) -> str:
        """Empty: a local upload cannot be resumed."""
        return ""

    @property
    def done(self) -> list[tuple[int, int]]:
        """(offset, length) of what was written, in order."""
        with self._lock:
            return sorted((offset, length) for offset, (length, _) in self._parts.items())

    def write(self, offset: int, buffer: Buffer, crc32c: int) -> None:
        """Write one part; from aligned memory at an aligned offset nothing is copied."""
        data = memoryview(buffer).cast("B")
        end = offset + len(data)
        if offset < 0 or end > self._size:
            raise ValueError(f"part {offset}:{end} is outside of {self._size} bytes")
        with self._open_fd() as fd, self._translated():
            write_at(fd, data, offset, final=end == self._size)
        with self._lock:
            self._parts[offset] = (len(data), crc32c)

    def commit(self, *, if_absent: bool = False, crc32c: int | None = None) -> ObjectInfo:
        """Publish the file; see `tierstore.backend.Upload.commit`."""
        if self._info is not None:
            return self._info
        whole = self._whole_crc()
        if crc32c is not None and crc32c != whole:
            message = f"the parts have the CRC32C {whole:08x}, not {crc32c:08x}"
            raise self._error(DamagedInTransitError, message)
        try:
            with self._open_fd() as fd, self._translated():
                os.ftruncate(fd, self._size)  # the last page may be padded
                if self._site.sync:
                    os.fsync(fd)
                self._publish(whole, if_absent=if_absent)
                status = os.fstat(fd)
        finally:
            self.abort()  # after a failed fsync the pages are lost: never tried again
        self._info = ObjectInfo(self._key, self._size, status.st_mtime)
        return self._info

    def abort(self) -> None:
        """Remove what is not published and free the disk. Idempotent."""
        with self._lock:
            if self._over:
                return
            self._over = True
            idle = self._writers == 0
        self._site.uploads.discard(self)
        if idle:
            self._release()
        with self._only_logged(), suppress(FileNotFoundError):  # renamed
            os.unlink(self._scratch)

    def _whole_crc(self) -> int:
        """Return the CRC32C of all parts, which must be all bytes."""
        at = total = 0
        with self._lock:
            parts = sorted(self._parts.items())
        for offset, (length, crc) in parts:
            if offset != at:
                break
            total = combine(total, crc, length)
            at += length
        if at != self._size:
            raise TruncatedFileError(
                f"{self._site.url}/{self._key}: cannot commit, byte {at} of {self._size} "
                f"was not written once"
            )
        return total

    def _publish(self, crc: int, *, if_absent: bool) -> None:
        folder = os.path.dirname(self._path)
        while not self._named(folder, crc, if_absent=if_absent):
            if not os.path.exists(self._scratch):
                raise self._error(StorageError, "the unfinished file was removed by somebody else")
        self._site.folders.sync(folder)

    def _named(self, folder: str, crc: int, *, if_absent: bool) -> bool:
        """Give the file its name; return False when another process got in between."""
        try:
            self._site.folders.ensure(folder)
            if if_absent:
                os.link(self._scratch, self._path)
            else:
                os.replace(self._scratch, self._path)
        except FileExistsError:
            return self._check_same(crc)
        except FileNotFoundError:  # the folder was pruned
            return False
        return True

    def _check_same(self, crc: int) -> bool:
        """Accept a repeated request, or a writer of the same bytes; False if they went away."""
        try:
            with open(self._path, "rb", buffering=0) as file:
                size, found = os.fstat(file.fileno()).st_size, 0
                while size == self._size and (block := file.read(BLOCK_SIZE)):
                    found = crc32c(block, found)
        except FileNotFoundError:
            return False
        if size != self._size or found != crc:
            raise self._error(AlreadyExistsError, "exists with other content")
        return True

    def _error(self, kind: type[StorageError], message: str) -> StorageError:
        return kind(message, url=self._site.url, key=self._key)

    @contextmanager
    def _open_fd(self) -> Iterator[int]:
        """Keep the descriptor open: closed under a writer it could become another file's."""
        with self._lock:
            if self._over:
                raise self._error(StorageError, "the upload is over")
            self._writers += 1
        try:
            yield self._fd
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._writers -= 1
            last = self._over and self._writers == 0
        if last:
            self._release()

    def _release(self) -> None:
        with self._only_logged():
            os.close(self._fd)

    @contextmanager
    def _only_logged(self) -> Iterator[None]:
        """Neither denies what was synced and published; a later writer sweeps what is left."""
        try:
            yield
        except OSError as error:
            _log.warning("cannot clean up %s: %s", self._scratch, error)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        with translated(self._site.url, self._key, self._site.folders.root, self._size):
            try:
                yield
            except NotFoundError:
                raise
            except FileNotFoundError as error:  # a writer's folder is gone, not an object
                raise self._error(StorageError, f"cannot write: {error.strerror}") from error
            except (IsADirectoryError, NotADirectoryError) as error:
                message = "a folder has this name, or a file the name of one of its folders"
                raise self._error(UnsupportedError, message) from error
