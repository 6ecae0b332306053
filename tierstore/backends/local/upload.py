"""Writing one file of a local tier, so that it is seen whole and durable or not at all."""

from __future__ import annotations

import mmap
import os
import stat as st
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

from tierstore.backend import ObjectInfo
from tierstore.backends.local.direct_io import read_at, reserve, set_direct, write_at
from tierstore.backends.local.errors import translated
from tierstore.backends.local.folders import Folders
from tierstore.backends.local.listing import told
from tierstore.backends.local.parts import PartsList
from tierstore.backends.local.scratch import Scratch
from tierstore.blocks import BLOCK_SIZE, Buffer, combine_parts, crc32c
from tierstore.errors import (
    AlreadyExistsError,
    BlockedError,
    DamagedInTransitError,
    NotFoundError,
    StorageError,
    TruncatedFileError,
    UnsupportedError,
)
from tierstore.logs import logger
from tierstore.regular import NotRegularError, check_regular, open_regular

BLOCKED = "a folder has this name, or a file the name of one of its folders"
_log = logger(__name__)


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
        size: bytes of the whole object; None where they are not known yet.
        direct: "always", "auto" or "never" bypass the page cache.
        resume: the token of the upload to go on with, or empty.

    Raises:
        NotFoundError: the upload to resume was committed, aborted, or forgotten.
    """

    def __init__(
        self,
        site: Site,
        key: str,
        path: str,
        size: int | None,
        direct: str,
        *,
        resume: str = "",
    ) -> None:
        self._site, self._key, self._path, self._given = site, key, path, size
        self._size = size or 0  # where it is not given, up to the end of what was written
        self._parts: dict[int, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._writers = 0
        self._over = False
        self._info: ObjectInfo | None = None
        self._scratch = ""
        self._list: PartsList | None = None
        with self._translated():
            scratch = site.scratch.beside(path)
            try:
                self._fd, self._scratch = scratch.reopen(resume) if resume else scratch.open()
            except FileNotFoundError:
                if not resume:
                    raise
                raise self._gone() from None
        try:
            with self._translated():
                if resume:
                    self._list = self._new_list()
                    self._recall(self._list)
                self._prepare(direct)
        except BaseException:
            self.let_go()  # a wrong token does not end another's upload
            raise
        site.uploads.add(self)

    def _prepare(self, direct: str) -> None:
        reserve(self._fd, self._size)
        if direct != "never" and not set_direct(self._fd, on=True) and direct == "always":
            raise self._error(UnsupportedError, "the file system refuses O_DIRECT")

    def _recall(self, parts: PartsList) -> None:
        """Take the parts that the list names and the file holds."""
        try:
            if self._given is None or not parts.is_of(self._key, self._given):
                raise self._error(StorageError, "the token is of another upload")
        except FileNotFoundError:
            raise self._gone() from None
        with closing(mmap.mmap(-1, BLOCK_SIZE)) as mapping, memoryview(mapping) as memory:
            for offset, length, crc in parts.read():
                self._parts.pop(offset, None)
                if self._crc_of(offset, length, memory) == crc:
                    self._parts[offset] = length, crc

    def _crc_of(self, offset: int, length: int, memory: memoryview) -> int:
        total, end = 0, min(offset + length, self._size)
        for at in range(offset, end, BLOCK_SIZE):
            part = memory[: min(BLOCK_SIZE, end - at)]
            read_at(self._fd, [part], at)
            total = crc32c(part, total)
        return total

    def _new_list(self) -> PartsList:
        return PartsList(self._scratch, self._site.folders.mode or 0o666)

    @property
    def token(self) -> str:
        """Asking for it makes the upload outlive this process, until it is resumed or forgotten."""
        if self._given is None:
            return ""
        with self._lock:
            if self._list is None and not self._over:
                self._list = self._new_list()
                with self._translated():
                    self._list.begin(self._key, self._size)
                    for offset, (length, crc) in self._parts.items():
                        self._list.add(offset, length, crc)
        return os.path.basename(self._scratch)

    @property
    def done(self) -> list[tuple[int, int]]:
        """(offset, length) of what was written, in order."""
        with self._lock:
            return sorted((offset, length) for offset, (length, _) in self._parts.items())

    def write(self, offset: int, buffer: Buffer, crc32c: int) -> None:
        """Write one part; from aligned memory at an aligned offset nothing is copied."""
        data = memoryview(buffer).cast("B")
        end = offset + len(data)
        if offset < 0 or (self._given is not None and end > self._given):
            raise ValueError(f"part {offset}:{end} is outside of {self._size} bytes")
        with self._lock:
            self._size = max(self._size, end)
        with self._open_fd() as fd, self._translated():
            write_at(fd, data, offset, final=end == self._given)
        with self._lock, self._translated():
            self._parts[offset] = (len(data), crc32c)
            if self._list is not None:
                self._list.add(offset, len(data), crc32c)

    def read_back(self, offset: int, buffer: memoryview) -> bool:
        """See `tierstore.backend.Upload.read_back`; from the disk where it was written direct."""
        with self._open_fd() as fd, self._translated():
            if read_at(fd, [buffer], offset) < buffer.nbytes:
                raise TruncatedFileError(f"{self._site.url}/{self._key}: it ends too early")
        return True

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
                status = self._status(fd)
        finally:
            self.abort()  # after a failed fsync the pages are lost: never tried again
        self._info = told(self._key, status)
        return self._info

    def _status(self, fd: int) -> os.stat_result:
        """Return the status of what was published, as it will be told from now on."""
        with suppress(FileNotFoundError):  # renamed
            os.unlink(self._scratch)  # which changes ctime
        status = os.fstat(fd)
        return status if status.st_nlink else os.stat(self._path)  # somebody else's, the same

    def abort(self) -> None:
        """Remove what is not published and free the disk. Idempotent."""
        self._leave_off(keep=False)

    def let_go(self) -> None:
        """Keep what can be resumed, abort what cannot. Idempotent."""
        self._leave_off(keep=self._list is not None)

    def _leave_off(self, *, keep: bool) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
            idle = self._writers == 0
        self._site.uploads.discard(self)
        if idle:
            self._release()
        if keep:
            return
        with self._only_logged(), suppress(FileNotFoundError):  # renamed
            os.unlink(self._scratch)
        if self._list is not None:
            with self._only_logged():
                self._list.remove()

    def _whole_crc(self) -> int:
        """Return the CRC32C of all parts, which must be all bytes."""
        with self._lock:
            at, total = combine_parts(self._parts)
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
                raise self._error(NotFoundError, "the unfinished file was removed by somebody else")
        self._site.folders.sync(folder)

    def _named(self, folder: str, crc: int, *, if_absent: bool) -> bool:
        """Give the file its name; return False when another process got in between."""
        try:
            self._site.folders.ensure(folder)
            if if_absent:
                os.link(self._scratch, self._path)
            else:
                self._check_replaced()
                os.replace(self._scratch, self._path)
            return True
        except FileNotFoundError:  # the folder was pruned
            return False
        except (FileExistsError, IsADirectoryError):
            if os.path.isdir(self._path) and not os.path.islink(self._path):
                self._site.folders.clear(self._path)
                return False
            return self._check_same(crc)

    def _check_replaced(self) -> None:
        """Replace files only, and links: a device has this name by mistake."""
        with suppress(FileNotFoundError):
            mode = os.lstat(self._path).st_mode
            if not st.S_ISLNK(mode):
                check_regular(mode)

    def _check_same(self, crc: int) -> bool:
        """Accept a repeated request, or a writer of the same bytes; False if they went away."""
        try:
            with open(open_regular(self._path), "rb", buffering=0) as file:
                size, found = os.fstat(file.fileno()).st_size, 0
                while size == self._size and (block := file.read(BLOCK_SIZE)):
                    found = crc32c(block, found)
        except FileNotFoundError:
            return False
        if size != self._size or found != crc:
            raise self._error(AlreadyExistsError, "exists with other content")
        return True

    def _gone(self) -> NotFoundError:
        return NotFoundError("no such upload", url=self._site.url, key=self._key)

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
            except NotRegularError as error:
                message = f"what has this name {error.strerror}"
                raise self._error(UnsupportedError, message) from error
            except FileNotFoundError as error:  # a writer's folder is gone, not an object
                raise self._error(StorageError, f"cannot write: {error.strerror}") from error
            except (IsADirectoryError, NotADirectoryError) as error:
                raise self._error(BlockedError, BLOCKED) from error
