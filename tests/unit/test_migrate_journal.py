"""The journal of a migration: what was noted is there, and nothing else is taken for a journal."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.disks import small_disk
from tests.sqlite_pages import endless
from tierstore.errors import (
    ConfigError,
    FormatError,
    NewerFormatError,
    OutOfSpaceError,
    StorageError,
)
from tierstore.transfer.engine.journal import Journal
from tierstore.transfer.engine.machine import Past
from tierstore.transfer.engine.records import (
    TARGET,
    Begun,
    Finished,
    Receipt,
    Record,
    Version,
    Void,
)

ONE, TWO, THERE = Version(10, 1.5), Version(20, 2.0, "tag"), Version(20, 99.25)
RECORDS: list[Record] = [
    Begun(1, "a", ONE, 4, "token"),
    Receipt(1, 0, 11),
    Begun(2, 'é "quoted"\n', TWO, 4, "other"),
    Receipt(2, 3, 2**32 - 1),
    Receipt(1, 2, 12),
    Void(2),
    Finished(3, "b", TWO, THERE),
]
KILLED = """
import os, signal, sys
from tests.unit.test_migrate_journal import RECORDS, Journal, Path
journal = Journal(Path(sys.argv[1]), "from", "to")
for record in RECORDS:
    journal.append(record)
os.kill(os.getpid(), signal.SIGKILL)
"""


def write(path: Path, *records: Record) -> None:
    with closing(Journal(path, "from", "to")) as journal:
        journal.append(*records)


@contextmanager
def read(path: Path, *, dry: bool = False) -> Iterator[Past]:
    with closing(Journal(path, "from", "to", dry=dry)) as journal:
        yield journal.past()


def refused(path: Path, kind: type[Exception], match: str) -> None:
    """Nothing of it is changed either."""
    before = path.stat().st_size, path.read_bytes() if path.stat().st_size < 1 << 30 else b""
    with pytest.raises(kind, match=match):
        Journal(path, "from", "to")
    assert path.stat().st_size == before[0]
    assert path.stat().st_size >= 1 << 30 or path.read_bytes() == before[1]


def files(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def altered(path: Path, statement: str) -> None:
    """Change a journal as anybody can."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute(statement)


def assert_all_of(past: Past) -> None:
    assert past.uploads == 1
    assert list(past.held) == [(TARGET, "a")]
    assert past.held[TARGET, "a"].begun == RECORDS[0]
    assert past.held[TARGET, "a"].crcs == {0: 11, 2: 12}
    assert past.finished(TARGET, "b", TWO, THERE)


def test_what_was_noted_is_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal"
    write(path, *RECORDS[:3])
    write(path, *RECORDS[3:])
    with read(path) as past:
        assert_all_of(past)
        assert past.finished(TARGET, "b", Version(20, 7.0, "tag"), THERE), (
            "a tag tells more than a time"
        )
        for key, version, target in [("a", TWO, THERE), ("b", ONE, THERE), ("b", TWO, TWO)]:
            assert not past.finished(TARGET, key, version, target)
    assert files(path.parent) == ["journal"]


def test_also_of_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    died = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert files(tmp_path) == ["journal", "journal-wal"]
    held = {each.name: (each.read_bytes(), each.stat()) for each in tmp_path.iterdir()}
    with read(path, dry=True) as past:
        assert past.held == {}, "what was begun would be gone on with"
        assert past.finished(TARGET, "b", TWO, THERE)
    assert {each.name: (each.read_bytes(), each.stat()) for each in tmp_path.iterdir()} == held
    with read(path) as past:
        assert_all_of(past)
    assert files(tmp_path) == ["journal"]


def test_stores_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, Begun(1, "a", ONE, 4, "t", "s3"), Begun(2, "a", ONE, 4, "u"))
    write(path, Finished(3, "b", ONE, ONE, "s3"))
    with read(path) as past:
        tokens = {place: held.begun.token for place, held in past.held.items()}
        assert tokens == {("s3", "a"): "t", (TARGET, "a"): "u"}
        found = [past.finished(store, "b", ONE, ONE) for store in ("s3", TARGET)]
        assert found == [True, False]


def test_a_later_life_replaces_what_an_earlier_one_said(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, Begun(1, "a", ONE, 4, ""), Receipt(1, 0, 1), Begun(1, "a", ONE, 4, "token"))
    write(
        path, Finished(1, "b", ONE, ONE), Begun(1, "c", ONE, 4, "its"), Finished(7, "b", TWO, TWO)
    )
    with read(path) as past:
        assert [(key, held.begun.token, held.crcs) for (_, key), held in past.held.items()] == [
            ("c", "its", {})
        ]
        assert (past.finished(TARGET, "b", ONE, ONE), past.finished(TARGET, "b", TWO, TWO)) == (
            False,
            True,
        )


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 40_000), tail=st.binary(max_size=5))
def test_cut_off_anywhere(tmp_path_factory: pytest.TempPathFactory, cut: int, tail: bytes) -> None:
    """The log of a host that crashed: there is a part of it, and then nothing, or anything."""
    path = tmp_path_factory.mktemp("cut") / "journal"
    journal = Journal(path, "from", "to")
    sizes, log = [], path.with_name("journal-wal")
    for record in RECORDS:
        journal.append(record)
        sizes.append(log.stat().st_size)
    whole, copy = log.read_bytes(), path.with_name("copy")
    shutil.copy(path, copy)
    journal.close()
    cut = min(cut, len(whole))
    copy.with_name("copy-wal").write_bytes(whole[:cut] + tail)
    write(copy, Finished(9, "later", ONE, TWO))
    with read(copy) as past:
        assert past.finished(TARGET, "later", ONE, TWO)
        assert past.finished(TARGET, "b", TWO, THERE) == (cut >= sizes[6])
        assert ((TARGET, "a") in past.held) == (cut >= sizes[0])
        if cut >= sizes[0]:
            parts = {index for at, index in ((1, 0), (4, 2)) if cut >= sizes[at]}
            assert set(past.held[TARGET, "a"].crcs) == parts


def test_all_or_none(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with closing(Journal(path, "from", "to")) as journal:
        with pytest.raises(OverflowError):
            journal.append(Finished(1, "a", ONE, ONE), Receipt(1, 2**64, 0))
        journal.append(Finished(1, "b", ONE, ONE))
    with read(path) as past:
        assert (past.finished(TARGET, "a", ONE, ONE), past.finished(TARGET, "b", ONE, ONE)) == (
            False,
            True,
        )


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, "from", "to")
    for dry in (False, True):
        with pytest.raises(ConfigError, match="another process is at this migration"):
            Journal(path, "from", "to", dry=dry)
    journal.append(*RECORDS)
    journal.close()
    write(path)


def test_two_that_begin_at_once(tmp_path: Path) -> None:
    """Whoever opened the empty file, of which the other has made a journal, is refused as well."""
    path = tmp_path / "journal"
    path.touch()
    begun = os.open(path, os.O_RDWR)
    journal = Journal(path, "from", "to")
    assert not os.fstat(begun).st_nlink
    os.close(begun)
    journal.close()


def test_what_a_killed_process_has_left_of_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.touch()
    (tmp_path / "journal.new").write_bytes(b"half of one")
    write(path, *RECORDS)
    with read(path) as past:
        assert_all_of(past)
    assert files(tmp_path) == ["journal"]


def test_the_log_of_a_journal_that_was_removed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    path.unlink()
    with read(path) as past:
        assert past.held == {}
        assert not past.finished(TARGET, "b", TWO, THERE)


def test_the_journal_of_another_migration(tmp_path: Path) -> None:
    write(tmp_path / "journal")
    with pytest.raises(ConfigError, match="the journal of a migration from from to to"):
        Journal(tmp_path / "journal", "from", "elsewhere")


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    """It has the names of all objects."""
    old = os.umask(0)
    try:
        with closing(Journal(tmp_path / "journal", "from", "to")) as journal:
            journal.append(*RECORDS)
            assert files(tmp_path) == ["journal", "journal-wal"]
            for each in tmp_path.iterdir():
                assert each.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(old)


def test_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "journal").symlink_to("elsewhere/real")
    write(tmp_path / "journal", *RECORDS)
    assert (tmp_path / "journal").is_symlink()
    with read(tmp_path / "elsewhere" / "real") as past:
        assert_all_of(past)


@pytest.mark.parametrize("content", [b"\\documentclass\n", b'6b1f1a0c ["something", "else"]\n'])
def test_anything_else_is_not_written_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "thesis.tex").write_bytes(content)
    refused(tmp_path / "thesis.tex", FormatError, "no journal of a migration")


def test_the_database_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "photos"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE photos (name)")
    refused(path, FormatError, "no journal of a migration")


def test_a_journal_of_the_old_form(tmp_path: Path) -> None:
    path = tmp_path / "my journal"
    path.write_bytes(b'5f0e3c1a ["tierstore-migration",1,"from","to"]\n')
    refused(path, FormatError, r"earlier tierstore .*`rm '.*my journal'` and start again")


def test_a_newer_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path)
    altered(path, "PRAGMA user_version = 2")
    refused(path, NewerFormatError, "newer tierstore")


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON finished BEGIN DELETE FROM upload; END",
        "CREATE VIEW v AS SELECT * FROM upload",
        "CREATE INDEX i ON upload (key)",
        "CREATE TABLE more (x)",
        "DROP TABLE receipt",
        "ALTER TABLE finished ADD COLUMN more",
        "UPDATE sqlite_master SET sql = replace(sql, 'key TEXT', 'key AS (zeroblob(1e9))')",
        "UPDATE sqlite_master SET rootpage = 3 WHERE name = 'receipt'",
        "UPDATE sqlite_master SET type = 'view' WHERE name = 'upload'",
        "DELETE FROM ends",
        "INSERT INTO ends VALUES ('from', 'to')",
    ],
)
def test_other_tables(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "journal"
    write(path, *RECORDS)
    altered(path, statement)
    refused(path, FormatError, "remove it: what is there already is compared then")


@pytest.mark.parametrize(
    "change",
    [
        *("part = 0", "part = -4", "part = 1 << 40", "part = 'x'", "number = -1", "size = -1"),
        *("part = 1, size = 1 << 40", "size = 1.5", "mtime = 9e999", "mtime = 'x'", "key = x'00'"),
        *("token = NULL", "tag = x'00'", "token = zeroblob(2000000)", "key = CAST(x'ff' AS TEXT)"),
    ],
)
def test_an_upload_that_cannot_be(tmp_path: Path, change: str) -> None:
    path = tmp_path / "journal"
    write(path, *RECORDS)
    altered(path, f"UPDATE upload SET {change}")
    refused(path, FormatError, "journal (has a record that cannot be|is damaged).*remove it")


@pytest.mark.parametrize("change", ["part = -1", "crc = 1 << 32", "crc = -1", "crc = 'x'"])
def test_a_receipt_that_cannot_be(tmp_path: Path, change: str) -> None:
    path = tmp_path / "journal"
    write(path, *RECORDS)
    altered(path, f"UPDATE receipt SET {change} WHERE part = 2")
    refused(path, FormatError, r"journal has a record that cannot be.*remove it")


def test_a_finished_object_that_cannot_be_is_none(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, *RECORDS)
    altered(path, "UPDATE finished SET stamp = zeroblob(99), size = 'x'")
    with read(path) as past:
        assert not past.finished(TARGET, "b", TWO, THERE)


def test_a_part_behind_the_end_is_no_part(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, Begun(1, "a", ONE, 4, "token"), Receipt(1, 2, 11), Receipt(1, 3, 12))
    with read(path) as past:
        assert past.held[TARGET, "a"].crcs == {2: 11}


@pytest.mark.parametrize("table", ["sqlite_master", "upload", "receipt", "ends", "finished"])
def test_pages_that_point_at_each_other(tmp_path: Path, table: str) -> None:
    """They would hold a row 50 to the power of 15 times."""
    path = tmp_path / "journal"
    write(path, *RECORDS[:2], RECORDS[-1])
    if table == "sqlite_master":  # a row that may be there twice
        altered(path, "CREATE TABLE more (x UNIQUE)")
    endless(path, table)
    begun = time.process_time()
    if table == "finished":  # of which all is never read
        with read(path) as past:
            past.finished(TARGET, "b", TWO, THERE)
    else:
        refused(path, FormatError, "remove it")
    assert time.process_time() - begun < 10


def test_another_file_is_not_read_whole(tmp_path: Path) -> None:
    """A terabyte, sparse: without anything in it, and behind the head of a journal."""
    path = tmp_path / "image"
    path.touch()
    os.truncate(path, 1 << 40)
    refused(path, FormatError, "no journal of a migration")
    path = tmp_path / "journal"
    write(path, *RECORDS)
    os.truncate(path, 1 << 40)
    with read(path) as past:
        assert_all_of(past)


def test_a_journal_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, *RECORDS)
    for size in range(1, path.stat().st_size, 1500):
        shutil.copy(path, copy := tmp_path / "copy")
        os.truncate(copy, size)
        with suppress(FormatError), read(copy) as past:  # without the end of the last row
            assert not past.finished(TARGET, "b", TWO, THERE)


def test_what_lies_beside_it(tmp_path: Path) -> None:
    """SQLite would act upon it: roll back, or remove a file that it names."""
    path = tmp_path / "journal"
    write(path, *RECORDS)
    beside = tmp_path / "journal-journal"
    beside.write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7")
    refused(path, FormatError, "journal-journal belongs to no journal")
    beside.unlink()
    os.mkfifo(tmp_path / "journal-wal")
    refused(path, StorageError, "is a named pipe, not a file")


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        Journal(tmp_path / "file" / "journal", "from", "to")


def test_a_folder_that_is_read_only(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1):
        path = tmp_path / "disk" / "journal"
        write(path, *RECORDS)
        subprocess.run(["mount", "-o", "remount,ro", str(path.parent)], check=True)
        for each in (path, path.with_name("new")):
            with pytest.raises(
                StorageError, match=r"cannot be written: .*name a journal elsewhere"
            ):
                Journal(each, "from", "to")
        with read(path, dry=True) as past:
            assert past.finished(TARGET, "b", TWO, THERE)


def test_a_full_disk(tmp_path: Path) -> None:
    many = [Finished(0, f"a rather long name of an object {n:06}", ONE, TWO) for n in range(20_000)]
    with small_disk(tmp_path / "disk", 1) as resize:
        path = tmp_path / "disk" / "journal"
        journal, noted = Journal(path, "from", "to"), 0

        def fill() -> None:
            nonlocal noted
            while noted < len(many):
                journal.append(*many[noted : noted + 100])
                noted += 100

        with pytest.raises(OutOfSpaceError, match=r"disk/journal cannot be written.*elsewhere"):
            fill()
        journal.close()  # no second error
        resize(10)
        with read(path) as past:
            assert noted > 1000
            assert all(past.finished(TARGET, each.key, ONE, TWO) for each in many[:noted])
            assert not past.finished(TARGET, many[noted].key, ONE, TWO)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_no_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "journal")
    with pytest.raises(
        StorageError, match=r"cannot be written: ([Ii]s a directory|is a named pipe)"
    ):
        Journal(tmp_path / "journal", "from", "to")
