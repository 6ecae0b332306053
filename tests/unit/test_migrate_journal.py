"""The journal of a migration: whatever was cut off or damaged costs records and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierstore.blocks import crc32c
from tierstore.errors import ConfigError, FormatError, NewerFormatError, StorageError
from tierstore.transfer.engine.journal import Journal
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


def write(path: Path, *records: Record) -> None:
    journal = Journal(path, "from", "to")
    for record in records:
        journal.append(record)
    journal.close()


def read(path: Path) -> Past:
    journal = Journal(path, "from", "to")
    journal.close()
    return journal.past()


def test_what_was_noted_is_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "journal"
    write(path, *RECORDS[:3])
    write(path, *RECORDS[3:])
    past = read(path)
    assert past.uploads == 3
    assert list(past.held) == [(TARGET, "a")]
    assert past.held[TARGET, "a"].begun == RECORDS[0]
    assert past.held[TARGET, "a"].crcs == {0: 11, 2: 12}
    assert past.finished(TARGET, "b", TWO, THERE)
    assert past.finished(TARGET, "b", Version(20, 7.0, "tag"), THERE), (
        "a tag tells more than a time"
    )
    for key, version, target in [("a", TWO, THERE), ("b", ONE, THERE), ("b", TWO, TWO)]:
        assert not past.finished(TARGET, key, version, target)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 2000), tail=st.binary(max_size=5))
def test_cut_off_anywhere(tmp_path_factory: pytest.TempPathFactory, cut: int, tail: bytes) -> None:
    path = tmp_path_factory.mktemp("cut") / "journal"
    write(path, *RECORDS)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    cut = min(cut, len(whole))
    if cut < len(lines[0]):  # without its head it is a new one
        tail = b""
    path.write_bytes(whole[:cut] + tail.replace(b"\n", b"?"))
    write(path, Finished(9, "later", ONE, TWO))
    past = read(path)
    assert past.finished(TARGET, "later", ONE, TWO)
    ends = [len(b"".join(lines[: number + 1])) - 1 for number in range(len(lines))]
    kept = sum(cut >= end for end in ends) - (cut in ends and bool(tail))
    assert past.finished(TARGET, "b", TWO, THERE) == (kept >= 8)
    assert ((TARGET, "a") in past.held) == (kept >= 2)


def test_a_damaged_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, *RECORDS)
    data = path.read_bytes()
    path.write_bytes(data.replace(b'["part",1,0,11]', b'["part",1,0,13]'))
    assert read(path).held[TARGET, "a"].crcs == {2: 12}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, "from", "to")
    with pytest.raises(ConfigError, match="another process is at this migration"):
        Journal(path, "from", "to")
    journal.close()
    write(path)


def test_the_journal_of_another_migration(tmp_path: Path) -> None:
    write(tmp_path / "journal")
    with pytest.raises(ConfigError, match="the journal of a migration from from to to"):
        Journal(tmp_path / "journal", "from", "elsewhere")


def test_nobody_else_reads_it(tmp_path: Path) -> None:
    """It has the names of all objects, also after it was written anew."""
    old = os.umask(0)
    try:
        write(tmp_path / "journal", *RECORDS)
    finally:
        os.umask(old)
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o600


def test_no_journal(tmp_path: Path) -> None:
    text = json.dumps(["something", "else"]).encode()
    (tmp_path / "journal").write_bytes(b"%08x %s\n" % (crc32c(text), text))
    with pytest.raises(FormatError, match="no journal of a migration"):
        Journal(tmp_path / "journal", "from", "to")


def test_anything_else_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("\\documentclass\n")
    with pytest.raises(FormatError, match="no journal of a migration"):
        Journal(tmp_path / "thesis.tex", "from", "to")
    assert (tmp_path / "thesis.tex").read_text() == "\\documentclass\n"


@pytest.mark.parametrize(
    "content", [["tierstore-migration", 2, "from", "to"], ["tierstore-migration", 1, "from", "to"]]
)
def test_a_newer_journal(tmp_path: Path, content: list[object]) -> None:
    lines = [content, ["unheard of"]]
    texts = [json.dumps(line).encode() for line in lines]
    path = tmp_path / "journal"
    path.write_bytes(b"".join(b"%08x %s\n" % (crc32c(text), text) for text in texts))
    with pytest.raises(NewerFormatError):
        Journal(path, "from", "to")


@pytest.mark.parametrize(
    "line",
    [
        *("[", "[" * 9000, "9" * 9000, '["digests","x"]', '["digests","eHh4"]'),
        '["begun",1,"a",[10,1.5,""],0,""]',
        '["begun",1,"a",[10,1.5,""],-4,""]',
        '["begun",1,"a",[1000000000000,1.5,""],1,""]',
        '["begun",1,"a",[100000000000000000000,1.5,""],4,""]',
        '["begun",1,"a",[-1,1.5,""],4,""]',
        '["begun",1,"a",[10,1e999,""],4,""]',
        '["begun",-1,"a",[10,1.5,""],4,""]',
        '["part",1,-1,5]',
        '["part",1,0,4294967296]',
        '["finished",3,"b",[-1,1.5,""],[10,1.5,""]]',
    ],
    ids=lambda line: line[:50],
)
def test_a_record_that_cannot_be(tmp_path: Path, line: str) -> None:
    path = tmp_path / "journal"
    write(path)
    with path.open("ab") as file:
        file.write(b"%08x %s\n" % (crc32c(line.encode()), line.encode()))
    with pytest.raises(FormatError, match=r"journal has a record that cannot be.*remove it"):
        read(path)


def test_a_part_behind_the_end_is_no_part(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, Begun(1, "a", ONE, 4, "token"), Receipt(1, 2, 11), Receipt(1, 3, 12))
    assert read(path).held[TARGET, "a"].crcs == {2: 11}


def test_another_file_is_not_read_whole(tmp_path: Path) -> None:
    """A terabyte without a line's end, sparse."""
    path = tmp_path / "image"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(FormatError, match="no journal of a migration"):
        read(path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot be written"):
        Journal(tmp_path / "file" / "journal", "from", "to")


def test_written_anew(tmp_path: Path) -> None:
    """What is finished or void shrinks to 16 bytes an object; what is under way stays."""
    path = tmp_path / "journal"
    many: list[Record] = [Finished(n + 9, f"many/{n:06}", ONE, THERE) for n in range(24_000)]
    many += [Begun(5, "void", ONE, 4, "gone"), Receipt(5, 0, 1), Void(5)]
    write(path, *RECORDS, *many)
    before, past = path.stat().st_size, read(path)
    assert path.stat().st_size < before / 2
    for again in (past, read(path)):
        assert again.held == {(TARGET, "a"): Held(Begun(1, "a", ONE, 4, "token"), {0: 11, 2: 12})}
        assert all(again.finished(TARGET, f"many/{n:06}", ONE, THERE) for n in range(24_000))
        assert again.finished(TARGET, "b", TWO, THERE)
        assert not again.finished(TARGET, "many/024000", ONE, THERE)
    assert [each.name for each in tmp_path.iterdir()] == ["journal"]


def test_one_process_at_a_time_while_it_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write(path, *(Finished(n, f"many/{n:06}", ONE, THERE) for n in range(24_000)))
    (tmp_path / "journal.new").write_bytes(b"what a killed process has left")
    journal = Journal(path, "from", "to")
    with pytest.raises(ConfigError, match="another process is at this migration"):
        Journal(path, "from", "to")
    journal.append(Begun(7, "a", ONE, 4, "token"))
    journal.close()
    assert read(path).held.keys() == {(TARGET, "a")}
