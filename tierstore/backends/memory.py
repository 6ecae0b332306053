"""Objects in the memory of this process: for tests, and for trying things out.

All that open the same URL share one dictionary, which lives as long as the process.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tierstore.backend import Capabilities, ObjectInfo, check_whole
from tierstore.blocks import Buffer, combine_parts, crc32c
from tierstore.errors import (
    AlreadyExistsError,
    ConfigError,
    DamagedInTransitError,
    NotFoundError,
    StorageError,
    TruncatedFileError,
)
from tierstore.keys import check_key
from tierstore.registry import declares, parse_url

_CAPABILITIES = Capabilities(
    atomic_create=True,
    clean_create=True,
    parallel_parts=True,
    resumable_upload=True,
    server_checksum=True,
    needs_read_back=False,
    seen_by="process",
)


@dataclass(slots=True)
class _Parts:
    """What one upload holds: bytes and the lengths and CRCs of its parts by offset."""

    key: str
    size: int | None
    data: bytearray
    written: dict[int, tuple[int, int]] = field(default_factory=dict)


class _Space:
    """What all backends of one URL share."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.objects: dict[str, tuple[bytes, ObjectInfo]] = {}
        self.keys: list[str] = []  # sorted
        self.uploads: dict[str, _Parts] = {}

    def put(self, url: str, key: str, data: bytes, crc: int, *, if_absent: bool) -> ObjectInfo:
        with self.lock:
            held = self.objects.get(key)
            if held is None:
                insort(self.keys, key)
            elif if_absent:
                if held[0] == data:
                    return held[1]
                raise AlreadyExistsError("exists with other content", url=url, key=key)
            info = ObjectInfo(key, len(data), time.time(), crc)
            self.objects[key] = data, info
            return info

    def remove(self, key: str) -> None:
        with self.lock:
            if self.objects.pop(key, None) is not None:
                del self.keys[bisect_left(self.keys, key)]

    def next_key(self, start: str, *, inclusive: bool) -> ObjectInfo | None:
        """Return the first object at or after `start`."""
        with self.lock:
            at = (bisect_left if inclusive else bisect_right)(self.keys, start)
            return self.objects[self.keys[at]][1] if at < len(self.keys) else None


_spaces: dict[str, _Space] = {}
_spaces_lock = threading.Lock()


def _renew_locks() -> None:
    """In a forked child: other threads may have held them, and are not here to let go."""
    global _spaces_lock  # noqa: PLW0603 - it protects what is one per process
    _spaces_lock = threading.Lock()
    for space in _spaces.values():
        space.lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_locks)


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """There are none."""


_DEFAULTS = MemoryOptions()


@declares(MemoryOptions)
def open_memory(url: str, options: MemoryOptions = _DEFAULTS) -> MemoryBackend:  # noqa: ARG001 - a factory
    """Open the objects of `memory://any/name`.

    Raises:
        ConfigError: the URL is wrong.
    """
    address = parse_url(url)
    if address.scheme != "memory":
        raise ConfigError(f"{url!r} is not a place in memory", hint="write memory://name")
    return MemoryBackend(address.url)


class MemoryBackend:
    """Objects in a dictionary; see `open_memory`."""

    def __init__(self, url: str) -> None:
        self.url = url
        with _spaces_lock:
            self._space = _spaces.setdefault(self.url, _Space())

    @property
    def capabilities(self) -> Capabilities:
        """See `tierstore.backend.Capabilities`."""
        return _CAPABILITIES

    def stat(self, key: str) -> ObjectInfo:
        """See `tierstore.backend.Backend.stat`."""
        return self._find(key)[1]

    def list(
        self, prefix: str, *, after: str | None = None, delimiter: bool = False
    ) -> Iterator[ObjectInfo]:
        """See `tierstore.backend.Backend.list`."""
        inclusive = after is None or after < prefix
        start = prefix if after is None or inclusive else after
        while True:
            item = self._space.next_key(start, inclusive=inclusive)
            if item is None or not item.key.startswith(prefix):
                return
            folder, slash, _ = item.key[len(prefix) :].partition("/")
            if delimiter and slash:
                common = f"{prefix}{folder}/"
                if after is None or common > after:
                    yield ObjectInfo(common, 0, 0.0)
                start, inclusive = f"{prefix}{folder}0", True  # "0" follows "/"
            else:
                yield item
                start, inclusive = item.key, False

    def read_into(self, key: str, offset: int, *buffers: memoryview) -> None:
        """See `tierstore.backend.Backend.read_into`."""
        data = self._find(key)[0]
        end = offset + sum(buffer.nbytes for buffer in buffers)
        if end > len(data):
            raise TruncatedFileError(
                f"{self.url}/{key}: has {len(data)} bytes, bytes {offset} to {end} are wanted"
            )
        for buffer in buffers:
            buffer.cast("B")[:] = memoryview(data)[offset : offset + buffer.nbytes]
            offset += buffer.nbytes

    def fetch(self, key: str, buffer: memoryview) -> ObjectInfo:
        """See `tierstore.backend.Backend.fetch`."""
        data, info = self._find(key)
        check_whole(self.url, info, buffer)
        buffer.cast("B")[:] = data
        return info

    def create(
        self,
        key: str,
        buffer: Buffer,
        *,
        if_absent: bool = False,
        durable: bool = True,  # noqa: ARG002 - memory never is
    ) -> ObjectInfo:
        """See `tierstore.backend.Backend.create`."""
        data = bytes(buffer)
        return self._space.put(self.url, check_key(key), data, crc32c(data), if_absent=if_absent)

    def flush(self) -> None:
        """Do nothing."""

    def upload(
        self, key: str, size: int | None = None, *, resume: str | None = None
    ) -> MemoryUpload:
        """See `tierstore.backend.Backend.upload`."""
        space = self._space
        with space.lock:
            held = space.uploads.get(resume) if resume else None
            if resume and held is not None and (held.key, held.size) == (key, size):
                return MemoryUpload(self.url, space, resume, held)
            token = secrets.token_hex(8)
            parts = space.uploads[token] = _Parts(check_key(key), size, bytearray(size or 0))
        return MemoryUpload(self.url, space, token, parts)

    def delete(self, keys: Iterable[str]) -> None:
        """See `tierstore.backend.Backend.delete`."""
        for key in keys:
            self._space.remove(key)

    def close(self) -> None:
        """Do nothing: the objects stay."""

    def _find(self, key: str) -> tuple[bytes, ObjectInfo]:
        with self._space.lock:
            held = self._space.objects.get(check_key(key))
        if held is None:
            raise NotFoundError("no such object", url=self.url, key=key)
        return held


class MemoryUpload:
    """One unfinished object; see `tierstore.backend.Upload`."""

    def __init__(self, url: str, space: _Space, token: str, parts: _Parts) -> None:
        self._url, self._space, self._parts = url, space, parts
        self._id = token
        self.token = "" if parts.size is None else token
        self._info: ObjectInfo | None = None

    @property
    def done(self) -> list[tuple[int, int]]:
        """(offset, length) of what was written, in order."""
        with self._space.lock:
            return sorted((at, length) for at, (length, _) in self._parts.written.items())

    def write(self, offset: int, buffer: Buffer, crc32c: int) -> None:
        """See `tierstore.backend.Upload.write`."""
        data = memoryview(buffer).cast("B")
        end = offset + len(data)
        if offset < 0 or (self._parts.size is not None and end > self._parts.size):
            raise ValueError(f"part {offset}:{end} is outside of {len(self._parts.data)} bytes")
        self._check("part", crc32c, _crc(data))
        with self._space.lock:
            if self._id not in self._space.uploads:
                raise StorageError("the upload is over", url=self._url, key=self._parts.key)
            self._parts.data.extend(bytes(max(0, end - len(self._parts.data))))
            self._parts.data[offset:end] = data
            self._parts.written[offset] = len(data), crc32c

    def read_back(self, offset: int, buffer: memoryview) -> bool:
        """See `tierstore.backend.Upload.read_back`."""
        with self._space.lock:
            buffer.cast("B")[:] = self._parts.data[offset : offset + buffer.nbytes]
        return True

    def commit(self, *, if_absent: bool = False, crc32c: int | None = None) -> ObjectInfo:
        """See `tierstore.backend.Upload.commit`."""
        with self._space.lock:
            if self._info is not None:
                return self._info
            if self._id not in self._space.uploads:
                raise StorageError("the upload is over", url=self._url, key=self._parts.key)
            whole = self._whole_crc()
            if crc32c is not None:
                self._check("whole", crc32c, whole)
            data = bytes(self._parts.data)
            self.abort()
            self._info = self._space.put(
                self._url, self._parts.key, data, whole, if_absent=if_absent
            )
            return self._info

    def abort(self) -> None:
        """See `tierstore.backend.Upload.abort`."""
        with self._space.lock:
            self._space.uploads.pop(self._id, None)

    def _whole_crc(self) -> int:
        at, total = combine_parts(self._parts.written)
        if at != len(self._parts.data):
            raise TruncatedFileError(
                f"{self._url}/{self._parts.key}: cannot commit, byte {at} of "
                f"{len(self._parts.data)} was not written once"
            )
        return total

    def _check(self, what: str, given: int, found: int) -> None:
        if given != found:
            raise DamagedInTransitError(
                f"the {what} has the CRC32C {found:08x}, not {given:08x}",
                url=self._url,
                key=self._parts.key,
            )


_crc = crc32c  # the parameter of the protocol has the function's name
