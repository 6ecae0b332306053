"""The journal of a migration: what its next life has to know, in an SQLite file.

Records are written in transactions of the write-ahead log, FILE-wal, without waiting for the disk:
a killed process loses none, a host that crashes the last ones, and then a part is sent again, or an
object compared, and nothing worse. The journal is a hint: a store is asked what it holds of an
upload, and a finished object is looked at again if it is no longer as it was left.

One process has it at a time, by a lock of the file. SQLite locks nothing then and needs no memory
that is shared with others, so a network file system will do. A new one is made beside its place and
renamed: it is there as a whole or not at all.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import re
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tierstore.errors import (
    ConfigError,
    FormatError,
    NewerFormatError,
    OutOfSpaceError,
    StorageError,
    TierstoreError,
)
from tierstore.regular import check_regular, open_regular
from tierstore.transfer.engine.machine import Past
from tierstore.transfer.engine.records import Record, Version
from tierstore.transfer.engine.tables import APPLICATION, FORMAT, Tables, create

_HEAD = 100  # bytes
_OLD = re.compile(rb'[0-9a-f]{8} \["tierstore-migration"')
_LONGEST = 1024**2  # bytes of a row
_STEPS, _LOOKS = 100_000, 150  # together more steps than any journal of use is opened in
_SETTINGS = (
    *("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"),
    *("locking_mode = EXCLUSIVE", "synchronous = NORMAL"),
)
_OF_THE_SYSTEM = {
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY),
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOLFS),
}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REMOVE = "remove it: what is there already is compared then"


class Journal:
    """One migration's journal, open and locked. To be used by one thread at a time.

    Args:
        path: the file; made, with its folders, if there is none.
        source: what is migrated.
        target: where to.
        trusted: what it says of objects that are finished, or begun, counts.
        dry: nothing is written, and it is not made.

    Raises:
        ConfigError: the file is of another migration, or in use.
        FormatError: it is no journal, or damaged.
        StorageError: it cannot be written.
    """

    def __init__(
        self, path: Path, source: str, target: str, *, trusted: bool = True, dry: bool = False
    ) -> None:
        self.path, self.trusted, self.dry = path, trusted, dry
        self._file, self._fd = Path(os.path.realpath(path)), -1
        self._db: sqlite3.Connection | None = None
        self._past = Past()
        if dry and not path.exists():
            return
        try:
            with _said(path):
                self._open((source, target))
        except BaseException:
            self._release()
            raise

    def past(self) -> Past:
        """Return what earlier lives have left; usable until it is closed."""
        finished = self._finished if self._db else self._past.finished
        # What was begun would be gone on with, so it is copied in a dry run too.
        held = {} if self.dry else self._past.held
        return Past(held, finished, self._past.uploads)

    def append(self, *records: Record) -> None:
        """Add records, all or none; they survive this process from now on.

        Raises:
            StorageError: they cannot be written.
        """
        if self._db is None or self.dry or not records:
            return
        with _said(self.path), self._db:
            self._db.execute("BEGIN")
            for record in records:
                self._tables.put(record)

    def close(self) -> None:
        """Sync and close, and leave one file. Idempotent."""
        with _said(self.path):
            try:
                if self._db and not self.dry:
                    self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_FULL:  # all is in the log then
                    raise
            finally:
                self._release()

    def _release(self) -> None:
        """Let go of the database, and then of the lock."""
        db, self._db = self._db, None
        fd, self._fd = self._fd, -1
        try:
            if db:
                db.close()
        finally:
            if fd >= 0:
                os.close(fd)

    def _finished(self, store: str, key: str, version: Version, target: Version) -> bool:
        with _said(self.path):
            return self._tables.finished(store, key, version, target)

    def _open(self, names: tuple[str, str]) -> None:
        if not self.dry:
            self._file.parent.mkdir(parents=True, exist_ok=True)
        self._fd = self._locked(self._file)
        head = os.pread(self._fd, _HEAD, 0)
        if head:
            self._check_head(head)
        elif self.dry:
            return
        else:
            self._make(names)
        self._check_beside()
        self._db = _connected(self._file, self._mode)
        self._tables = Tables(self._db)
        self._check_ends(names)
        self._past = self._tables.past()
        self._db.set_progress_handler(None, 0)

    @property
    def _mode(self) -> str:
        """How to open it: without a log nothing at all is written beside what is immutable."""
        if not self.dry:
            return "mode=rw"
        return "mode=ro" if self._beside("-wal").exists() else "immutable=1"

    def _locked(self, path: Path, *flags: int) -> int:
        """Open and lock a file; return its descriptor."""
        access = os.O_RDONLY if self.dry else os.O_RDWR | os.O_CREAT
        fd = open_regular(path, sum(flags, start=access), 0o600)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if self.dry else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if not os.fstat(fd).st_nlink:
                raise BlockingIOError  # another process has just made it
        except BaseException as error:
            os.close(fd)
            if not isinstance(error, BlockingIOError):
                raise
            raise ConfigError(
                f"{self.path}: another process is at this migration",
                hint="wait for it, or end it and start again",
            ) from None
        return fd

    def _make(self, names: tuple[str, str]) -> None:
        """Put a new journal in the place of an empty file."""
        new = self._beside(".new")
        for stale in (new, self._beside("-wal")):  # of a journal that was removed
            stale.unlink(missing_ok=True)
        fd = self._locked(new, os.O_EXCL)
        try:
            with closing(_connected(new, "mode=rw")) as db:
                db.execute("PRAGMA journal_mode = MEMORY")
                create(db, *names)
                db.execute("PRAGMA journal_mode = WAL")
            new.replace(self._file)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd = fd

    def _beside(self, suffix: str) -> Path:
        return self._file.with_name(self._file.name + suffix)

    def _check_head(self, head: bytes) -> None:
        """Refuse other files before SQLite has a look, which might change them."""
        if _OLD.match(head):
            raise FormatError(
                f"{self.path} is the journal of an earlier tierstore",
                hint=f"finish with that one, or `rm {shlex.quote(str(self.path))}` and start again:"
                " what is there already is compared, and only files sent in part are sent anew",
            )
        if head[:16] != b"SQLite format 3\0" or _number(head, 68) != APPLICATION:
            raise FormatError(
                f"{self.path} is no journal of a migration", hint=f"name another one, or {_REMOVE}"
            )
        if _number(head, 60) > FORMAT:
            raise NewerFormatError(f"{self.path} was written by a newer tierstore")

    def _check_beside(self) -> None:
        """Refuse what SQLite would take for this journal's, and act upon."""
        if os.path.lexists(rollback := self._beside("-journal")):
            raise FormatError(
                f"{rollback} belongs to no journal of a migration", hint="remove or rename it"
            )
        if os.path.lexists(log := self._beside("-wal")):
            check_regular(log.lstat().st_mode)

    def _check_ends(self, names: tuple[str, str]) -> None:
        source, target = self._tables.ends()
        if (source, target) != names:
            raise ConfigError(
                f"{self.path} is the journal of a migration from {source} to {target}",
                hint="name another one",
            )


def _number(head: bytes, at: int) -> int:
    return int.from_bytes(head[at : at + 4], "big", signed=True)


def _connected(file: Path, mode: str) -> sqlite3.Connection:
    """Open a database that nobody else has, and whose content may be hostile.

    SQLite reads what tables there are at once, and again and again if pages point at each other.
    """
    url = f"{file.as_uri()}?vfs=unix-none&{mode}"
    db = sqlite3.connect(url, uri=True, isolation_level=None, check_same_thread=False)
    try:
        looks = itertools.count()
        db.set_progress_handler(lambda: next(looks) >= _LOOKS, _STEPS)
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
        for setting in _SETTINGS:
            db.execute(f"PRAGMA {setting}")
    except BaseException:
        db.close()
        raise
    return db


def _code(error: sqlite3.Error) -> int:
    """Return SQLite's primary error code; 0 where there is none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


@contextmanager
def _said(path: Path) -> Iterator[None]:
    """Turn what SQLite and the operating system say of the journal into this project's words."""
    try:
        yield
    except TierstoreError:
        raise
    except OSError as error:
        kind = OutOfSpaceError if error.errno in _FULL else StorageError
        raise _unwritten(path, kind, error.strerror or str(error)) from error
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.Error as error:
        if _code(error) in _OF_THE_SYSTEM:
            kind = OutOfSpaceError if _code(error) == sqlite3.SQLITE_FULL else StorageError
            raise _unwritten(path, kind, str(error)) from error
        raise FormatError(f"{path} is damaged: {error}", hint=_REMOVE) from error
    except ValueError as error:
        raise FormatError(f"{path} has a record that cannot be: {error}", hint=_REMOVE) from error


def _unwritten(path: Path, kind: type[StorageError], why: str) -> StorageError:
    return kind(f"the journal {path} cannot be written: {why}", hint="name a journal elsewhere")
