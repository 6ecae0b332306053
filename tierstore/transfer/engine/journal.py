"""The journal of a migration: what its next life has to know. Append-only, one record a line.

::

    5f0e3c1a ["tierstore-migration", 1, "<source>", "<destination>"]
    0b1d9a77 ["begun", <upload>, "<key>", <version>, <bytes of a part>, "<token>"]
    91c2aa03 ["part", <upload>, <index>, <CRC32C>]
    d41d8cd9 ["void", <upload>]
    2c26b46b ["finished", <upload>, "<key>", <version>, <version at the destination>]
    7d865e95 ["digests", "<base64 of 16 bytes for each of many objects that are finished>"]

Whoever opens a journal of which over a MiB is of no more use writes it anew, with digests for what
is finished: a million objects are read in a tenth of a second then.

A version is [<size>, <mtime>, "<tag>"]. Each line starts with the CRC32C of the rest of it. A line
that was cut off, or is damaged, counts as not written: then a part is sent again, or an object
compared, and nothing worse. So lines are not synced one by one; a killed process loses none. The
journal is a hint: a store is asked what it holds of an upload, and a finished object is looked at
again if it is no longer as it was left.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from tierstore.blocks import crc32c
from tierstore.errors import ConfigError, FormatError, NewerFormatError, StorageError
from tierstore.regular import open_regular
from tierstore.transfer.engine.machine import Past
from tierstore.transfer.engine.records import (
    TARGET,
    Begun,
    Finished,
    Held,
    Receipt,
    Record,
    Version,
    Void,
)

_MAGIC, _VERSION = "tierstore-migration", 1
_MUCH = 1024**2  # bytes of no more use from which a journal is written anew
_DIGEST = 16  # bytes
_LINE = 4096 * _DIGEST  # bytes of digests in a line
_LONGEST = 1024**2  # bytes that are read of a line
_LARGEST, _MOST = 64 * 1024**3, 1 << 20  # bytes of a part, parts of an object


class Replay:
    """Puts together what the records of earlier lives say, in their order."""

    def __init__(self) -> None:
        self._begun: dict[int, Begun] = {}
        self._crcs: dict[int, dict[int, int]] = {}
        self._finished = bytearray()
        self._highest = 0

    def add(self, record: Record) -> None:
        """Take the next record."""
        self._highest = max(self._highest, record.upload)
        if isinstance(record, Begun):
            self._begun[record.upload] = record
            self._crcs[record.upload] = {}
        elif isinstance(record, Receipt):
            begun = self._begun.get(record.upload)
            if begun is None or record.index * begun.part < max(1, begun.version.size):
                self._crcs.setdefault(record.upload, {})[record.index] = record.crc
        else:
            self._begun.pop(record.upload, None)
            self._crcs.pop(record.upload, None)
            if isinstance(record, Finished):
                self._finished += _digest(record.store, record.key, record.version, record.target)

    def add_digests(self, digests: bytes) -> None:
        """Take what a journal that was written anew says of finished objects."""
        if len(digests) % _DIGEST:
            raise ValueError("a digest has 16 bytes")
        self._finished += digests

    def rest(self) -> Iterator[list[object]]:
        """Yield the fewest lines that say the same."""
        for upload, begun in self._begun.items():
            yield _to_json(begun)
            for index, crc in self._crcs[upload].items():
                yield _to_json(Receipt(upload, index, crc))
        for at in range(0, len(self._finished), _LINE):
            yield ["digests", base64.b64encode(self._finished[at : at + _LINE]).decode()]

    def past(self) -> Past:
        """Return what the next life begins with."""
        held = {
            (begun.store, begun.key): Held(begun, self._crcs[upload])
            for upload, begun in self._begun.items()
        }
        return Past(held, _Index(self._finished).has, self._highest)


class _Index:
    """What the finished objects of any number of lives were, 16 bytes each."""

    def __init__(self, digests: bytearray) -> None:
        self._sorted: npt.NDArray[np.bytes_] = np.array(np.frombuffer(digests, f"S{_DIGEST}"))
        self._sorted.sort()

    def has(self, store: str, key: str, version: Version, target: Version) -> bool:
        """See `Past.finished`."""
        wanted = _digest(store, key, version, target).rstrip(b"\0")  # as NumPy sees it
        at = int(np.searchsorted(self._sorted, np.bytes_(wanted)))
        return at < len(self._sorted) and bytes(self._sorted[at]) == wanted


def _digest(store: str, key: str, version: Version, target: Version) -> bytes:
    versions = version.size, version.stamp, target.size, target.stamp
    text = json.dumps([key, *versions, *_named(store)])
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST).digest()


class Journal:
    """One migration's journal, open and locked. To be used from one thread.

    Args:
        path: the file; made, with its folders, if there is none.
        source: what is migrated.
        target: where to.
        trusted: what it says of objects that are finished, or begun, counts.
        dry: nothing is added to it, and it is not made.

    Raises:
        ConfigError: the file is of another migration, or in use.
        FormatError: it is no journal.
        StorageError: it cannot be written.
    """

    def __init__(
        self, path: Path, source: str, target: str, *, trusted: bool = True, dry: bool = False
    ) -> None:
        self.path, self.trusted, self.dry = path, trusted, dry
        self._names, self._replay, self._fd = (source, target), Replay(), -1
        if dry and not path.exists():
            return
        with _said(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = _opened(path)
        try:
            self._lock()
            if self._load() > _MUCH:
                self._write_anew()
        except BaseException:
            os.close(self._fd)
            raise

    def past(self) -> Past:
        """Return what earlier lives have left."""
        past = self._replay.past()
        # What was begun would be gone on with, so it is copied in a dry run too.
        return Past(finished=past.finished) if self.dry else past

    def append(self, record: Record) -> None:
        """Add a record; it survives this process from now on."""
        if not self.dry:
            self._put(_line(_to_json(record)))

    def close(self) -> None:
        """Sync and close. Idempotent."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with _said(self.path):
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(self._fd).st_nlink:
                raise BlockingIOError  # another process has just written it anew
        except BlockingIOError:
            raise ConfigError(
                f"{self.path}: another process is at this migration",
                hint="wait for it, or end it and start again",
            ) from None

    def _load(self) -> int:
        """Read it all; return the bytes of which fewer would do."""
        with open(self._fd, "rb", closefd=False) as file:
            try:
                return self._read(file)
            except (ValueError, RecursionError) as error:
                raise FormatError(
                    f"{self.path} has a record that cannot be: {error}",
                    hint="remove it: what is there already is compared then",
                ) from error

    def _read(self, file: IO[bytes]) -> int:
        head, many = self._head(), 0
        line = file.readline(_LONGEST)
        if line != head and head.startswith(line):  # new, or cut off at once
            os.ftruncate(self._fd, 0)
            self._put(head)
            return 0
        self._check_head(_content(line))
        last = line
        while line := file.readline(_LONGEST):
            many += self._add(_content(line), len(line))
            last = line
        if not last.endswith(b"\n"):
            self._put(b"\n")
        return many

    def _add(self, content: object, size: int) -> int:
        """Take a line; return its bytes if fewer would do."""
        match content:
            case None:
                return 0
            case ["digests", str(digests)]:
                self._replay.add_digests(base64.b64decode(digests, validate=True))
                return 0
        self._replay.add(_checked(_from_json(content)))
        return size

    def _head(self) -> bytes:
        return _line([_MAGIC, _VERSION, *self._names])

    def _write_anew(self) -> None:
        """Put a journal that says the same in fewer lines in the place of this one."""
        new, old = self.path.with_name(f"{self.path.name}.new"), self._fd
        with _said(self.path):
            new.unlink(missing_ok=True)
            self._fd = _opened(new)
            try:
                self._lock()
                self._put(self._head())
                for line in self._replay.rest():
                    self._put(_line(line))
                os.fsync(self._fd)
                new.replace(self.path)
            finally:
                os.close(old)

    def _check_head(self, head: object) -> None:
        match head:
            case ["tierstore-migration", 1, source, target]:
                if (source, target) != self._names:
                    raise ConfigError(
                        f"{self.path} is the journal of a migration from {source} to {target}",
                        hint="name another one",
                    )
            case ["tierstore-migration", *_]:
                raise NewerFormatError(f"{self.path} was written by a newer tierstore")
            case _:
                raise FormatError(
                    f"{self.path} is no journal of a migration",
                    hint="name another one, or remove it: what is there already is compared then",
                )

    def _put(self, line: bytes) -> None:
        with _said(self.path):
            done = os.write(self._fd, line)
            if done < len(line):
                os.write(self._fd, line[done:])


def _opened(path: Path) -> int:
    return open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """Turn what the operating system says of the journal into this project's words."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the journal {path} cannot be written: {error.strerror}",
            hint="name a journal elsewhere",
        ) from error


def _line(content: object) -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()
    return b"%08x %s\n" % (crc32c(text), text)


def _content(line: bytes) -> object:
    """Return what a line says; None if it is not whole."""
    checksum, _, text = line.removesuffix(b"\n").partition(b" ")
    return json.loads(text.decode()) if checksum == b"%08x" % crc32c(text) else None


def _to_json(record: Record) -> list[object]:
    match record:
        case Begun():
            version = _fields(record.version)
            store = _named(record.store)
            return ["begun", record.upload, record.key, version, record.part, record.token, *store]
        case Receipt():
            return ["part", record.upload, record.index, record.crc]
        case Void():
            return ["void", record.upload]
        case Finished():
            versions = _fields(record.version), _fields(record.target)
            return ["finished", record.upload, record.key, *versions, *_named(record.store)]


def _named(store: str) -> tuple[str, ...]:
    """Return how a store is told; most journals have but one."""
    return () if store == TARGET else (store,)


def _store(told: list[object]) -> str:
    match told:
        case []:
            return TARGET
        case [str(store)]:
            return store
        case _:
            raise NewerFormatError(f"a journal has the store {str(told)[:60]!r}")


def _fields(version: Version) -> tuple[int, float, str]:
    return version.size, version.mtime, version.tag


def _from_json(line: object) -> Record:
    match line:
        case ["begun", int(upload), str(key), version, int(part), str(token), *store]:
            return Begun(upload, key, _version(version), part, token, _store(store))
        case ["part", int(upload), int(index), int(crc)]:
            return Receipt(upload, index, crc)
        case ["void", int(upload)]:
            return Void(upload)
        case ["finished", int(upload), str(key), version, target, *store]:
            return Finished(upload, key, _version(version), _version(target), _store(store))
        case _:
            raise NewerFormatError(f"a journal has the record {str(line)[:60]!r}")


def _checked(record: Record) -> Record:
    """Return a record whose numbers can be.

    Raises:
        ValueError: they cannot.
    """
    versions = [getattr(record, name, None) for name in ("version", "target")]
    for version in filter(None, versions):
        if not 0 <= version.size < 2**63 or not math.isfinite(version.mtime):
            raise ValueError(f"an object of {version.size} bytes, changed at {version.mtime}")
    if not 0 <= record.upload < 2**63:
        raise ValueError(f"an upload {record.upload}")
    if isinstance(record, Receipt) and not (record.index >= 0 and 0 <= record.crc < 2**32):
        raise ValueError(f"the CRC32C {record.crc} of part {record.index}")
    if isinstance(record, Begun):
        count = -(-record.version.size // record.part) if record.part > 0 else 0
        if not 0 < record.part <= _LARGEST or count > _MOST:
            raise ValueError(f"{record.version.size} bytes in parts of {record.part}")
    return record


def _version(line: object) -> Version:
    match line:
        case [int(size), float(mtime), str(tag)]:
            return Version(size, mtime, tag)
        case _:
            raise NewerFormatError(f"a journal has the version {str(line)[:60]!r}")
