"""The tables of a journal: records go in, and what the next life has to know comes out.

`upload` and `receipt` hold what is under way and little else, `finished` a row for each object that
was ever verified. A file may hold anything, so what is read is checked; numbers have to ascend,
without which a few damaged pages that point at each other could be read for ever.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator

from tierstore.transfer.engine.machine import Past
from tierstore.transfer.engine.records import (
    Begun,
    Finished,
    Held,
    Receipt,
    Record,
    Version,
    Void,
)

APPLICATION, FORMAT = 0x7469_6572, 1  # "tier"
SCHEMA = {
    "ends": "CREATE TABLE ends (source TEXT, target TEXT)",
    "upload": "CREATE TABLE upload (number INTEGER PRIMARY KEY, key TEXT, size INTEGER, "
    "mtime REAL, tag TEXT, part INTEGER, token TEXT, store TEXT)",
    "receipt": "CREATE TABLE receipt (upload INTEGER, part INTEGER, crc INTEGER, "
    "PRIMARY KEY (upload, part)) WITHOUT ROWID",
    # A stamp is a tag, or without one a time; see `Version.stamp`.
    "finished": "CREATE TABLE finished (store TEXT, key TEXT, size INTEGER, stamp, "
    "target_size INTEGER, target_stamp, PRIMARY KEY (store, key)) WITHOUT ROWID",
}
_FOUND = "SELECT size, stamp, target_size, target_stamp FROM finished WHERE (store, key) = (?, ?)"
_LARGEST, _MOST = 64 * 1024**3, 1 << 20  # bytes of a part, parts of an object


def create(db: sqlite3.Connection, source: str, target: str) -> None:
    """Make the tables of a migration's journal."""
    with db:
        db.execute("BEGIN")
        db.execute(f"PRAGMA application_id = {APPLICATION}")
        db.execute(f"PRAGMA user_version = {FORMAT}")
        for statement in SCHEMA.values():
            db.execute(statement)
        db.execute("INSERT INTO ends VALUES (?, ?)", (source, target))


class Tables:
    """The tables of an open database.

    Args:
        db: has the tables that `create` makes.

    Raises:
        ValueError: it has others.
        sqlite3.Error: from here and from all methods; it cannot be read or written, or is damaged.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        made = [("table", name, at, sql) for at, (name, sql) in enumerate(SCHEMA.items(), start=2)]
        held = db.execute("SELECT type, name, rootpage, sql FROM sqlite_master ORDER BY rowid")
        if held.fetchmany(len(made) + 1) != made:
            raise ValueError("its tables are not those of a journal")
        held.close()
        self._db = db
        self._open: set[int] = set()  # uploads that have rows

    def ends(self) -> tuple[object, ...]:
        """Return whose journal it is: source and target."""
        rows = self._db.execute("SELECT source, target FROM ends LIMIT 2").fetchall()
        if len(rows) != 1:
            raise ValueError("it is of no migration, or of several")
        return tuple(rows[0])

    def past(self) -> Past:
        """Return what the next life begins with. What is finished is looked up when asked for.

        Raises:
            ValueError: a record cannot be.
        """
        uploads = {begun.upload: begun for begun in self._begun()}
        crcs: dict[int, dict[int, int]] = {number: {} for number in uploads}
        for receipt in self._receipts():
            begun = uploads.get(receipt.upload)
            if begun and receipt.index * begun.part < max(1, begun.version.size):
                crcs[receipt.upload][receipt.index] = receipt.crc
        self._open = set(uploads)
        held = {
            (begun.store, begun.key): Held(begun, crcs[number]) for number, begun in uploads.items()
        }
        return Past(held, self.finished, max(uploads, default=0))

    def finished(self, store: str, key: str, version: Version, target: Version) -> bool:
        """See `Past.finished`."""
        wanted = version.size, version.stamp, target.size, target.stamp
        return self._db.execute(_FOUND, (store, key)).fetchall() == [wanted]

    def put(self, record: Record) -> None:
        """Write down a record."""
        match record:
            case Begun(number, key, version, part, token, store):
                self._forget(number)
                self._open.add(number)
                row = number, key, version.size, version.mtime, version.tag, part, token, store
                self._db.execute("INSERT INTO upload VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            case Receipt(number, index, crc):
                added = "INSERT OR REPLACE INTO receipt VALUES (?, ?, ?)"
                self._db.execute(added, (number, index, crc))
            case Void(number):
                self._forget(number)
            case Finished(number, key, version, target, store):
                self._forget(number)
                fields = store, key, version.size, version.stamp, target.size, target.stamp
                self._db.execute(
                    "INSERT OR REPLACE INTO finished VALUES (?, ?, ?, ?, ?, ?)", fields
                )

    def _forget(self, number: int) -> None:
        """Remove what is known of an upload; most objects are small, and had none."""
        if number in self._open:
            self._open.remove(number)
            self._db.execute("DELETE FROM upload WHERE number = ?", (number,))
            self._db.execute("DELETE FROM receipt WHERE upload = ?", (number,))

    def _begun(self) -> Iterator[Begun]:
        last = -1
        for row in self._db.execute("SELECT * FROM upload ORDER BY number"):
            begun = _begun(row)
            if not last < begun.upload:
                raise ValueError(f"upload {begun.upload} behind {last}")
            last = begun.upload
            yield begun

    def _receipts(self) -> Iterator[Receipt]:
        last = (-1, -1)
        for row in self._db.execute("SELECT * FROM receipt ORDER BY upload, part"):
            receipt = _receipt(row)
            place = receipt.upload, receipt.index
            if not last < place:
                raise ValueError(f"part {receipt.index} of upload {receipt.upload} behind {last}")
            last = place
            yield receipt


def _begun(row: tuple[object, ...]) -> Begun:
    match row:
        case (
            int(number),
            str(key),
            int(size),
            float(mtime),
            str(tag),
            int(part),
            str(token),
            str(store),
        ):
            if number < 0 or size < 0 or not math.isfinite(mtime):
                raise ValueError(f"upload {number} of {size} bytes, changed at {mtime}")
            if not 0 < part <= _LARGEST or -(-size // part) > _MOST:
                raise ValueError(f"{size} bytes in parts of {part}")
            return Begun(number, key, Version(size, mtime, tag), part, token, store)
    raise ValueError(f"the upload {str(row)[:60]}")


def _receipt(row: tuple[object, ...]) -> Receipt:
    match row:
        case (int(number), int(index), int(crc)):
            if number >= 0 and index >= 0 and 0 <= crc < 2**32:
                return Receipt(number, index, crc)
    raise ValueError(f"the receipt {str(row)[:60]}")
