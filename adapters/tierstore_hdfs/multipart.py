"""Uploads in parts: files in a hidden folder, joined by CONCAT, then renamed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate

from tierstore.backend import ObjectInfo
from tierstore.blocks import Buffer, combine
from tierstore.errors import (
    DamagedInTransitError,
    NotFoundError,
    StorageError,
    TransientError,
    TruncatedFileError,
    UnsupportedError,
)
from tierstore.uploads import EmptyUpload, PartSizes, ResumeToken
from tierstore_hdfs.errors import naming
from tierstore_hdfs.files import Files
from tierstore_hdfs.listing import entries
from tierstore_hdfs.paths import hidden_name, outer_folder, parse_part, part_name

_TRIES = 3
MOST_PARTS = 100_000
"""Parts of an upload: their names have five digits for one."""
_QUERY = 16_000  # bytes of names in one CONCAT; the namenode takes heads of 64 KiB


class PartsUpload:
    """An upload of one object in parts of equal size, numbered by their offset.

    Args:
        files: of the tier.
        key: of the object.
        inner: the folder of the parts, relative to the root, below a hidden one.
        sizes: of the parts.
        resumable: there is a token.
    """

    def __init__(
        self, files: Files, key: str, inner: str, sizes: PartSizes, *, resumable: bool = True
    ) -> None:
        self._files = files
        self._key, self._inner, self._outer, self._sizes = key, inner, outer_folder(inner), sizes
        self._resumable = resumable
        self._folder = files.paths.folder(inner)
        self._names: dict[int, str] = {}
        self._joined = 0  # parts that an earlier CONCAT took into the first one
        self._lock = threading.Lock()
        self._over = False
        self._info: ObjectInfo | None = None

    @property
    def token(self) -> str:
        """For `HdfsBackend.upload(resume=...)`; empty where the size is not known."""
        sizes = self._sizes
        token = ResumeToken(self._key, sizes.size, self._inner, sizes.part_size)
        return str(token) if self._resumable else ""

    @property
    def done(self) -> list[tuple[int, int]]:
        """(offset, length) of the parts that HDFS holds."""
        with self._lock:
            indexes = sorted({*self._names, *range(self._joined)})
        return [(index * self._sizes.part_size, self._sizes.length(index)) for index in indexes]

    def recall(self) -> None:
        """Ask the namenode which parts it holds, of several of one offset the newest.

        Raises:
            NotFoundError: the upload was committed or aborted.
        """
        whole = list(accumulate(self._sizes.length(index) for index in range(self._sizes.count)))
        newest: dict[int, int] = {}
        with naming(self._files.url, self._key):
            if not self._files.exists(self._folder):
                raise NotFoundError("the upload was committed or aborted: begin it again")
        for name, status in entries(self._files, f"{self._inner}/"):
            index = (parse_part(name) or (-1, 0))[0]
            length, written = status.length, status.changed
            if index == 0 and length in whole[1:]:
                self._joined = whole.index(length) + 1
            elif not self._newer(index, length, written, newest):
                continue
            newest[index] = written
            self._names[index] = name

    def _newer(self, index: int, length: int, written: int, newest: dict[int, int]) -> bool:
        """Return whether this is a whole part, and the newest of its offset so far."""
        whole = index >= 0 and 0 < length == self._sizes.length(index)
        return whole and not (index == 0 and self._joined) and newest.get(index, -1) <= written

    def write(self, offset: int, buffer: Buffer, crc32c: int) -> None:
        """Write one part; all but the last have the size that `Capabilities.part_size_for` gives.

        Raises:
            UnsupportedError: there are more parts than an upload may have.
            ValueError: it is not one of the upload's parts.
        """
        size = memoryview(buffer).nbytes
        index = self._sizes.take(offset, size)
        if index < self._joined:
            return  # it is in the file already

        def fresh() -> str:
            return f"{self._folder}/{part_name(index, crc32c)}"

        with naming(self._files.url, self._key):
            # A late duplicate must not bring back the folder of an upload that is over.
            path = self._files.write(fresh, buffer, size, parents=False)
        with self._lock:
            self._names[index] = path.rpartition("/")[2]

    def read_back(self, offset: int, buffer: memoryview) -> bool:
        """Read a part from a datanode; False for what an earlier CONCAT has joined."""
        with self._lock:
            name = self._names.get(offset // self._sizes.part_size, "")
        if not name or offset < self._joined * self._sizes.part_size:
            return False
        with naming(self._files.url, self._key):
            self._files.read(f"{self._folder}/{name}", 0, buffer)
        return True

    def commit(self, *, if_absent: bool = False, crc32c: int | None = None) -> ObjectInfo:
        """Join the parts and rename the whole.

        It may be repeated after an answer that did not tell: each step looks at what there is.
        """
        if self._info is not None:
            return self._info
        if not self._sizes.size:
            return self._commit_empty(if_absent=if_absent, crc=crc32c)
        with naming(self._files.url, self._key):
            try:
                self._info = self._commit(if_absent=if_absent, crc=crc32c)
            except NotFoundError as gone:
                # An earlier commit of this upload may have come as far as that.
                info = None
                if not self._over and not self._files.exists(self._folder):
                    info = self._files.same_or_none(
                        self._key, self._sizes.size, self._whole(crc32c)
                    )
                if info is None:
                    raise gone from None
                self._info = info
            except FileExistsError:
                self.abort()
                raise
        with suppress(StorageError):  # what is left is found by `uploads`
            self.abort()
        return self._info

    def abort(self) -> None:
        """Remove the parts. Idempotent."""
        if not self._over:
            with naming(self._files.url, self._key):
                self._files.remove(self._files.paths.folder(self._outer), recursive=True)
            self._over = True
            if self._info is None:
                self._files.prune([self._outer.rpartition("/")[0]])

    def _commit_empty(self, *, if_absent: bool, crc: int | None) -> ObjectInfo:
        """Create an object that turned out to have no bytes: CONCAT wants no empty part."""
        if self._over:
            raise StorageError("the upload is over", url=self._files.url, key=self._key)
        empty = EmptyUpload(self._files.url, self._key, self._files.create)
        info = empty.commit_for(self.abort, if_absent=if_absent, crc32c=crc)
        self._info = info
        return info

    def _whole(self, given: int | None) -> int | None:
        """Return the CRC32C of the parts joined; where parts are joined already, the one given."""
        if self._joined:
            return given
        names = [self._names.get(index, "") for index in range(self._sizes.count)]
        crcs = [(parse_part(name) or (0, 0))[1] for name in names]
        return combine((crc, self._sizes.length(index)) for index, crc in enumerate(crcs))

    def _commit(self, *, if_absent: bool, crc: int | None) -> ObjectInfo:
        names = self._ordered()
        whole = self._whole(crc)
        if not self._joined and crc not in (None, whole):
            text = f"the parts have CRC32C {whole:08x}, the whole should have {crc:08x}"
            raise DamagedInTransitError(text)
        path = self._join(names)
        if self._joined and crc is not None:
            # The names that told the parts' CRCs are gone.
            held = self._files.read_crc(path, self._sizes.size)
            if held != crc:
                raise DamagedInTransitError(f"the whole has CRC32C {held:08x}, not {crc:08x}")
        return self._publish(path, whole, if_absent=if_absent)

    def _publish(self, path: str, whole: int | None, *, if_absent: bool) -> ObjectInfo:
        files = self._files
        folder = files.paths.of(self._key).rpartition("/")[0] or "/"
        apart = folder != files.paths.folder(self._outer.rpartition("/")[0])
        tries = _TRIES if apart else 1
        while True:
            if apart:
                files.client.call("PUT", folder, "MKDIRS")
            try:
                return files.publish(path, self._key, self._sizes.size, whole, if_absent=if_absent)
            except NotFoundError:  # whoever deletes removes empty folders, as this one was
                tries -= 1
                if not tries or not files.exists(path):
                    raise

    def _ordered(self) -> list[str]:
        """Return the names of all parts, "" for those that are joined already."""
        count = self._sizes.count
        with self._lock:
            names = [
                "" if 0 < index < self._joined else self._names.get(index) for index in range(count)
            ]
        missing = [index for index, name in enumerate(names) if name is None]
        if missing:
            first = missing[0] * self._sizes.part_size
            raise TruncatedFileError(
                f"{len(missing)} of {count} parts are missing, the first at byte {first}"
            )
        return [name for name in names if name is not None]

    def _join(self, names: list[str]) -> str:
        """Join what is not joined yet and return the path of the whole."""
        first = f"{self._folder}/{names[0]}"
        rest = self._check(names)
        if rest and "," in first:
            return self._stream(names, rest)
        for batch in _batches([f"{self._folder}/{name}" for name in rest]):
            try:
                self._files.client.call("POST", first, "CONCAT", sources=",".join(batch))
            except (NotFoundError, TransientError):
                if self._check(names):  # only a CONCAT that was done and not answered leaves none
                    raise
                break
            except UnsupportedError:
                # An encryption zone, or parts that differ in erasure coding.
                return self._stream(names, self._check(names))
        if self._files.status(first).length != self._sizes.size:
            raise TransientError("the joined file does not have the length of its parts")
        return first

    def _check(self, names: list[str]) -> list[str]:
        """Look at the length of each part; return the names of those that are still to be joined.

        Raises:
            TruncatedFileError: one is short, as a write that was cut off leaves it.
        """
        found = entries(self._files, f"{self._inner}/")
        held = {name: status.length for name, status in found}
        if not held:
            raise NotFoundError("the upload's folder is gone")
        left = [index for index, name in enumerate(names) if index and name in held]
        start = left[0] if left else len(names)
        wanted = {index: self._sizes.length(index) for index in range(start, len(names))}
        wanted[0] = sum(self._sizes.length(index) for index in range(start))
        bad = [index for index in sorted(wanted) if held.get(names[index]) != wanted[index]]
        if bad:
            with self._lock:
                for index in bad:
                    self._names.pop(index, None)
            text = f"{held.get(names[bad[0]], 0)} of {wanted[bad[0]]} bytes"
            raise TruncatedFileError(f"HDFS holds {text} of part {bad[0]}; write it again")
        self._joined = start if start > 1 else self._joined
        return names[start:]

    def _stream(self, names: list[str], rest: list[str]) -> str:
        """Write one file from the parts, which are read meanwhile; the first holds all but rest."""
        outer = self._files.paths.folder(self._outer)

        def pieces() -> Iterator[memoryview]:
            start = len(names) - len(rest)
            size = sum(self._sizes.length(index) for index in range(start))
            yield from self._files.blocks(f"{self._folder}/{names[0]}", size)
            for index, name in enumerate(rest, start):
                yield from self._files.blocks(f"{self._folder}/{name}", self._sizes.length(index))

        def fresh() -> str:
            return f"{outer}/{hidden_name()}"

        return self._files.write(fresh, pieces, self._sizes.size, parents=False)


def _batches(paths: list[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for path in paths:
        size += 3 * len(path.encode())  # percent-encoded at worst
        if batch and size > _QUERY:
            yield batch
            batch, size = [], 3 * len(path.encode())
        batch.append(path)
    if batch:
        yield batch
