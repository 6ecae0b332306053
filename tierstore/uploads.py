"""What uploads in parts have in common, whatever store they go to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol

from tierstore.backend import ObjectInfo
from tierstore.blocks import Buffer
from tierstore.errors import (
    AlreadyExistsError,
    DamagedInTransitError,
    StorageError,
    UnsupportedError,
)
from tierstore.text import is_unicode

_LONGEST = 64 * 1024  # characters of a token


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """An upload that was begun and neither committed nor aborted.

    Attributes:
        key: the key below the tier's root.
        upload_id: the store's name for it.
        begun: seconds since 1970 by the store's clock.
    """

    key: str
    upload_id: str
    begun: float


@dataclass(frozen=True, slots=True)
class ResumeToken:
    """All that a later process must know of an upload; it holds no secret.

    Attributes:
        key: the key below the tier's root.
        size: bytes of the whole object.
        upload_id: the store's name for the upload.
        part_size: bytes of every part but the last.
    """

    key: str
    size: int
    upload_id: str
    part_size: int

    def __str__(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str, key: str, size: int | None, *, most: int) -> ResumeToken:
        """Return the token that `str` printed for an upload of `key` of `size` bytes.

        Args:
            text: whatever a journal holds.
            key: of the upload to go on with.
            size: of the object.
            most: parts that an upload may have.

        Raises:
            StorageError: it is of another upload, or no token.
        """
        try:
            if len(text) > _LONGEST:
                raise ValueError
            token = cls(**json.loads(text))
        except (TypeError, ValueError, RecursionError) as error:
            raise StorageError("the upload's token cannot be read") from error
        if type(token.size) is not int or (token.key, token.size) != (key, size):
            raise StorageError(
                f"the token is of an upload of {token.key!r} of {token.size} bytes, not {size}"
            )
        named = type(token.upload_id) is str and token.upload_id and is_unicode(token.upload_id)
        parted = type(token.part_size) is int and 0 < token.size <= most * token.part_size
        if not named or not parted:
            raise StorageError("the upload's token names no parts of it")
        return token


class PartSizes:
    """Where the parts of one object begin and end; safe between threads.

    All but the last have one size. Where the object's size is not known before, the last is what
    was taken furthest behind.

    Args:
        size: bytes of the object, or None.
        part_size: bytes of every part but the last.
        most: parts that there may be; of an object of unknown size this bounds its size.
    """

    def __init__(self, size: int | None, part_size: int, most: int) -> None:
        self.part_size = part_size
        self._most = most
        self._given = size
        self._end = 0
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes of the object; where that is not known, up to the end of what was taken."""
        return self._end if self._given is None else self._given

    @property
    def count(self) -> int:
        """How many parts there are, by `size`."""
        return -(-self.size // self.part_size)

    def length(self, index: int) -> int:
        """Return the bytes of a part, by `size`; 0 or less where there is none."""
        return min(self.part_size, self.size - index * self.part_size)

    def take(self, offset: int, nbytes: int) -> int:
        """Return the index of a part that is written. Taking it again is no error.

        Raises:
            ValueError: it is none of the object's parts.
            UnsupportedError: the object has more parts than the store takes.
        """
        index, rest = divmod(offset, self.part_size)
        if rest or index < 0 or not 0 < nbytes <= self.part_size:
            raise self._none(offset, nbytes)
        if self._given is None:
            self._grow(index, offset, nbytes)
        elif nbytes != self.length(index):
            raise self._none(offset, nbytes)
        return index

    def _grow(self, index: int, offset: int, nbytes: int) -> None:
        if index >= self._most:
            raise UnsupportedError(
                f"the object is larger than {self._most} parts of {self.part_size} bytes",
                hint="give the tier a larger part_size, or say the object's size before",
            )
        with self._lock:
            last = max(0, self.count - 1)
            # Only the last may be short: so none behind a short one, and no short one before it.
            if index > last and self._end % self.part_size:
                raise self._none(offset, nbytes)
            if index < last and nbytes < self.part_size:
                raise self._none(offset, nbytes)
            if index >= last:
                self._end = offset + nbytes

    def _none(self, offset: int, nbytes: int) -> ValueError:
        return ValueError(
            f"{nbytes} bytes at {offset} are no part of {self.size} bytes in parts of "
            f"{self.part_size}"
        )


class _Create(Protocol):
    def __call__(self, key: str, buffer: Buffer, *, if_absent: bool) -> ObjectInfo: ...


class EmptyUpload:
    """An object of no bytes, which has no part: it is created whole at commit.

    Args:
        url: of the tier.
        key: of the object.
        create: as `Backend.create`.
    """

    token = ""

    def __init__(self, url: str, key: str, create: _Create) -> None:
        self._url, self._key, self._create = url, key, create

    @property
    def done(self) -> list[tuple[int, int]]:
        """Nothing is ever held."""
        return []

    def write(self, offset: int, buffer: Buffer, crc32c: int) -> None:
        """Take an empty part.

        Raises:
            ValueError: it is not empty.
        """
        if offset or crc32c or memoryview(buffer).nbytes:
            raise ValueError(
                f"{memoryview(buffer).nbytes} bytes at {offset} are no part of 0 bytes"
            )

    def read_back(self, offset: int, buffer: memoryview) -> bool:  # noqa: ARG002 - the protocol's
        """Return False: there is nothing to read."""
        return False

    def commit(self, *, if_absent: bool = False, crc32c: int | None = None) -> ObjectInfo:
        """Create the empty object."""
        if crc32c:
            text = f"no bytes have CRC32C 0, not {crc32c:08x}"
            raise DamagedInTransitError(text, url=self._url, key=self._key)
        return self._create(self._key, b"", if_absent=if_absent)

    def commit_for(
        self, abort: Callable[[], None], *, if_absent: bool, crc32c: int | None
    ) -> ObjectInfo:
        """Create the object that an upload of unknown size turned out to be.

        Args:
            abort: frees that upload, once the object is there or has lost.
            if_absent: as in `commit`.
            crc32c: as in `commit`.
        """
        try:
            info = self.commit(if_absent=if_absent, crc32c=crc32c)
        except AlreadyExistsError:
            abort()
            raise
        abort()
        return info

    def abort(self) -> None:
        """Do nothing: the store holds nothing."""
