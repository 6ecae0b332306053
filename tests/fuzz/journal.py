"""Journals of migrations, which the next life of one goes on from."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from random import Random

from tests.sqlite_pages import endless
from tierstore.transfer.engine.entries import Entry
from tierstore.transfer.engine.journal import Journal
from tierstore.transfer.engine.machine import Machine
from tierstore.transfer.engine.messages import Fed, Joined, Open, Opened
from tierstore.transfer.engine.records import TARGET, Begun, Finished, Receipt, Version, Void
from tierstore.transfer.engine.rules import Destination, Orders
from tierstore.transfer.engine.tables import SCHEMA

_ENDS = "file:///from", "file:///to"
_MIB = 1024**2
_ONE, _TWO = Version(20 * _MIB, 1.5), Version(9, 2.0, "tag")
_FOLDER = Path("/dev/shm")
_PAGE = 4096
_VALUES = [
    *("NULL", "0", "-1", "1.5", "9e999", "'x'", "''", "x'00ff'", "CAST(x'ff' AS TEXT)"),
    *("1 << 62", "-(1 << 62) * 2", "zeroblob(70000)", "'../x'", "char(0)"),
    "zeroblob(1100000)",
]
_OTHERS = [
    "CREATE TRIGGER t AFTER INSERT ON finished BEGIN DELETE FROM upload; END",
    *("CREATE VIEW v AS SELECT * FROM upload", "CREATE INDEX i ON upload (key)"),
    *("PRAGMA user_version = -1", "PRAGMA user_version = 2", "PRAGMA application_id = 1"),
    *("PRAGMA journal_mode = DELETE", "PRAGMA auto_vacuum = FULL", "VACUUM"),
    *("UPDATE sqlite_master SET sql = replace(sql, 'TEXT', 'BLOB')", "DELETE FROM ends"),
    *("UPDATE sqlite_master SET rootpage = rootpage + 1", "DELETE FROM sqlite_master"),
    "UPDATE sqlite_master SET sql = 'CREATE TABLE upload (number AS (1), key)' WHERE rootpage = 3",
]


def _file() -> Path:
    return _FOLDER / f"tierstore-fuzz-{os.getpid()}"


def SEEDS() -> list[bytes]:
    records = [
        *(Begun(1, "a", _ONE, 8 * _MIB, "token"), Receipt(1, 0, 11), Receipt(1, 2, 2**32 - 1)),
        *(Begun(2, "b", _TWO, 4, ""), Void(2), Finished(3, "c", _TWO, _ONE)),
        Begun(4, "d", _TWO, 4, "t"),
    ]
    many = [Finished(0, f"many/{number:03}", _TWO, _ONE) for number in range(300)]
    many += [Begun(9, "long" * 3000, _TWO, 4, "t")]
    with tempfile.TemporaryDirectory(dir=_FOLDER) as folder:
        path = Path(folder) / "journal"
        found = []
        for each in (records, many):
            with closing(Journal(path, *_ENDS)) as journal:
                journal.append(*each)
            found.append(path.read_bytes())
        return found


def parse(data: bytes) -> None:
    path = _file()
    path.write_bytes(data)
    try:
        with closing(Journal(path, *_ENDS)) as journal:
            _use(journal)
    finally:
        for suffix in ("", "-wal", ".new"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def _use(journal: Journal) -> None:
    past = journal.past()
    past.finished(TARGET, "c", _TWO, _ONE)
    machine = Machine(Orders({TARGET: Destination(lambda _: 8 * _MIB)}), past)
    entries = [Entry(key, held.begun.version) for (_, key), held in past.held.items()]
    commands = [*machine.begin(), *machine.handle(Joined("worker", 9))]
    commands += machine.handle(Fed((*entries, Entry("z", _TWO)), last=True))
    for command in commands:
        if isinstance(command, Open):
            done = ((0, min(8 * _MIB, command.entry.version.size)),)
            machine.handle(Opened(command.job, command.token, done))
    number = past.uploads
    journal.append(Begun(number, "a", _TWO, 4, "t"), Receipt(number, 0, 1))
    journal.append(Finished(number, "c", _ONE, _ONE), Finished(number, "many/1", _ONE, _ONE))


def mutate(data: bytes, rng: Random) -> bytes:
    """Change what the tables say or are, or pages as a whole."""
    path = _file()
    path.write_bytes(data)
    try:
        match rng.randrange(4):
            case 0:
                return _pages(data, rng)
            case 1 if rng.random() < 0.005:  # each takes as long as a journal is given
                endless(path, rng.choice(["sqlite_master", *SCHEMA]))
            case _:
                _altered(path, rng)
        return path.read_bytes()
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def _altered(path: Path, rng: Random) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db, suppress(sqlite3.Error):
        db.execute("PRAGMA writable_schema = ON")
        for _ in range(rng.choice((1, 1, 2, 3))):
            if rng.random() < 0.3:
                db.execute(rng.choice(_OTHERS))
            else:
                table = rng.choice(list(SCHEMA))
                column = rng.choice([row[1] for row in db.execute(f"PRAGMA table_info({table})")])
                values = _VALUES[:-1] if table == "finished" else _VALUES  # it has many rows
                db.execute(f"UPDATE {table} SET {column} = {rng.choice(values)}")


def _pages(data: bytes, rng: Random) -> bytes:
    """Swap, repeat, drop or empty whole pages."""
    pages = [data[at : at + _PAGE] for at in range(0, len(data), _PAGE)]
    one, other = rng.randrange(len(pages)), rng.randrange(len(pages))
    match rng.randrange(4):
        case 0:
            pages[one], pages[other] = pages[other], pages[one]
        case 1:
            pages[one] = pages[other]
        case 2:
            del pages[one]
        case _:
            pages[one] = bytes(_PAGE)
    return b"".join(pages)
