"""Uploads in parts: files in a hidden folder, joined by CONCAT, then renamed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
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
from tierstore_hdfs.errors import naming
from tierstore_hdfs.files import Files
from tierstore_hdfs.listing import entries
from tierstore_hdfs.paths import hidden_name, is_hidden, parse_part, part_name, upload_key

_TRIES = 3
_MOST = 100_000  # parts: their names have five digits for one
_QUERY = 16_000  # bytes of names in one CONCAT; the namenode takes heads of 64 KiB


@dataclass(frozen=True, slots=True)
class ResumeToken:
    """All that a later process must know of an upload; folders are relative to the root."""

    key: str
    size: int
    part_size: int
    outer: str
    inner: str

    def __str__(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str, key: str, size: int) -> ResumeToken:
        """Return the token that `str` printed for an upload of `key` of `size` bytes.

        Raises:
            StorageError: it is of another upload, or no token.
        """
        try:
            token = cls(**json.loads(text))
            good = token._can_be()
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise StorageError("the upload's token cannot be read") from error
        if (token.key, token.size) != (key, size):
            raise StorageError(
                f"the token is of an upload of {token.key!r} of {token.size} bytes, not {size}"
            )
        if not good:
            raise StorageError("the upload's token names no parts of it")
        return token

    def _can_be(self) -> bool:
        """Whether there are such parts: below a hidden folder, which `abort` removes, of the key.

        A journal holds the token, and a CRC says that it is what somebody wrote.
        """
        sized = type(self.part_size) is int and self.part_size > 0 and self.count <= _MOST
        own = is_hidden(self.outer.rpartition("/")[2]) and self.inner.startswith(f"{self.outer}/")
        return sized and own and upload_key(self.outer, self.inner) == self.key

    def length(self, index: int) -> int:
        """Return the bytes of a part; 0 or less where there is none."""
        return min(self.part_size, self.size - index * self.part_size)

    @property
    def count(self) -> int:
        """How many parts there are."""
        return -(-self.size // self.part_size)


class PartsUpload:
    """An upload of one object in parts of equal size, numbered by their offset."""

    def __init__(self, files: Files, token: ResumeToken) -> None:
        self._files = files
        self._token = token
        self._folder = files.paths.folder(token.inner)
        self._names: dict[int, str] = {}
        self._joined = 0  # parts that an earlier CONCAT took into the first one
        self._lock = threading.Lock()
        self._over = False
        self._info: ObjectInfo | None = None

    @property
    def token(self) -> str:
        """For `HdfsBackend.upload(resume=...)`; it holds no secret."""
        return str(self._token)

    @property
    def done(self) -> list[tuple[int, int]]:
        """(offset, length) of the parts that HDFS holds."""
        with self._lock:
            indexes = sorted({*self._names, *range(self._joined)})
        return [(index * self._token.part_size, self._token.length(index)) for index in indexes]

    def recall(self) -> None:
        """Ask the namenode which parts it holds, of several of one offset the newest.

        Raises:
            NotFoundError: the upload was committed or aborted.
        """
        token = self._token
        whole = list(accumulate(token.length(index) for index in range(token.count)))
        newest: dict[int, int] = {}
        with naming(self._files.url, token.key):
            if not self._files.exists(self._folder):
                raise NotFoundError("the upload was committed or aborted: begin it again")
        for name, status in entries(self._files, f"{token.inner}/"):
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
        whole = index >= 0 and 0 < length == self._token.length(index)
        return whole and not (index == 0 and self._joined) and newest.get(index, -1) <= written

    def write(self, offset: int, buffer: Buffer, crc32c: int) -> None:
        """Write one part; all but the last have the size that `Capabilities.part_size_for` gives.

        Raises:
            ValueError: it is not one of the upload's parts.
        """
        size, token = memoryview(buffer).nbytes, self._token
        index, rest = divmod(offset, token.part_size)
        if rest or index < 0 or size != token.length(index):
            raise ValueError(
                f"{size} bytes at {offset} are no part of {token.size} bytes in parts of "
                f"{token.part_size}"
            )
        if index < self._joined:
            return  # it is in the file already

        def fresh() -> str:
            return f"{self._folder}/{part_name(index, crc32c)}"

        with naming(self._files.url, token.key):
            # A late duplicate must not bring back the folder of an upload that is over.
            path = self._files.write(fresh, buffer, size, parents=False)
        with self._lock:
            self._names[index] = path.rpartition("/")[2]

    def read_back(self, offset: int, buffer: memoryview) -> bool:
        """Read a part from a datanode; False for what an earlier CONCAT has joined."""
        with self._lock:
            name = self._names.get(offset // self._token.part_size, "")
        if not name or offset < self._joined * self._token.part_size:
            return False
        with naming(self._files.url, self._token.key):
            self._files.read(f"{self._folder}/{name}", 0, buffer)
        return True

    def commit(self, *, if_absent: bool = False, crc32c: int | None = None) -> ObjectInfo:
        """Join the parts and rename the whole.

        It may be repeated after an answer that did not tell: each step looks at what there is.
        """
        if self._info is not None:
            return self._info
        token = self._token
        with naming(self._files.url, token.key):
            try:
                self._info = self._commit(if_absent=if_absent, crc=crc32c)
            except NotFoundError as gone:
                # An earlier commit of this upload may have come as far as that.
                info = None
                if not self._over and not self._files.exists(self._folder):
                    info = self._files.same_or_none(token.key, token.size, self._whole(crc32c))
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
            with naming(self._files.url, self._token.key):
                self._files.remove(self._files.paths.folder(self._token.outer), recursive=True)
            self._over = True
            if self._info is None:
                self._files.prune([self._token.outer.rpartition("/")[0]])

    def _whole(self, given: int | None) -> int | None:
        """Return the CRC32C of the parts joined; where parts are joined already, the one given."""
        if self._joined:
            return given
        total = 0
        for index in range(self._token.count):
            crc = (parse_part(self._names.get(index, "")) or (0, 0))[1]
            total = combine(total, crc, self._token.length(index))
        return total

    def _commit(self, *, if_absent: bool, crc: int | None) -> ObjectInfo:
        token, names = self._token, self._ordered()
        whole = self._whole(crc)
        if not self._joined and crc not in (None, whole):
            text = f"the parts have CRC32C {whole:08x}, the whole should have {crc:08x}"
            raise DamagedInTransitError(text)
        path = self._join(names)
        if self._joined and crc is not None:
            # The names that told the parts' CRCs are gone.
            held = self._files.read_crc(path, token.size)
            if held != crc:
                raise DamagedInTransitError(f"the whole has CRC32C {held:08x}, not {crc:08x}")
        return self._publish(path, whole, if_absent=if_absent)

    def _publish(self, path: str, whole: int | None, *, if_absent: bool) -> ObjectInfo:
        files, token = self._files, self._token
        folder = files.paths.of(token.key).rpartition("/")[0] or "/"
        apart = folder != files.paths.folder(token.outer.rpartition("/")[0])
        tries = _TRIES if apart else 1
        while True:
            if apart:
                files.client.call("PUT", folder, "MKDIRS")
            try:
                return files.publish(path, token.key, token.size, whole, if_absent=if_absent)
            except NotFoundError:  # whoever deletes removes empty folders, as this one was
                tries -= 1
                if not tries or not files.exists(path):
                    raise

    def _ordered(self) -> list[str]:
        """Return the names of all parts, "" for those that are joined already."""
        count = self._token.count
        with self._lock:
            names = [
                "" if 0 < index < self._joined else self._names.get(index) for index in range(count)
            ]
        missing = [index for index, name in enumerate(names) if name is None]
        if missing:
            first = missing[0] * self._token.part_size
            raise TruncatedFileError(
                f"{len(missing)} of {count} parts are missing, the first at byte {first}"
            )
        return [name for name in names if name is not None]

    def _join(self, names: list[str]) -> str:
        """Join what is not joined yet and return the path of the whole."""
        first, token = f"{self._folder}/{names[0]}", self._token
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
        if self._files.status(first).length != token.size:
            raise TransientError("the joined file does not have the length of its parts")
        return first

    def _check(self, names: list[str]) -> list[str]:
        """Look at the length of each part; return the names of those that are still to be joined.

        Raises:
            TruncatedFileError: one is short, as a write that was cut off leaves it.
        """
        found = entries(self._files, f"{self._token.inner}/")
        held = {name: status.length for name, status in found}
        if not held:
            raise NotFoundError("the upload's folder is gone")
        left = [index for index, name in enumerate(names) if index and name in held]
        start = left[0] if left else len(names)
        wanted = {index: self._token.length(index) for index in range(start, len(names))}
        wanted[0] = sum(self._token.length(index) for index in range(start))
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
        outer = self._files.paths.folder(self._token.outer)

        def pieces() -> Iterator[memoryview]:
            start = len(names) - len(rest)
            size = sum(self._token.length(index) for index in range(start))
            yield from self._files.blocks(f"{self._folder}/{names[0]}", size)
            for index, name in enumerate(rest, start):
                yield from self._files.blocks(f"{self._folder}/{name}", self._token.length(index))

        def fresh() -> str:
            return f"{outer}/{hidden_name()}"

        return self._files.write(fresh, pieces, self._token.size, parents=False)


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
