"""Migrations between folders and memory: what goes wrong at either end has a clear outcome."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.files import contents, journal_rows
from tests.fired import fired
from tests.patience import PATIENCE
from tierstore.backend import ObjectInfo
from tierstore.backends.local.backend import open_local
from tierstore.backends.memory import open_memory
from tierstore.errors import (
    AccessError,
    NotFoundError,
    OutOfSpaceError,
    StorageError,
    TruncatedFileError,
    UnreachableError,
)
from tierstore.migration.ends import Ends
from tierstore.migration.listing import objects
from tierstore.patterns import Selection
from tierstore.transfer.engine import messages as m
from tierstore.transfer.engine.crew import PartMemory, room_of
from tierstore.transfer.engine.entries import Outcome
from tierstore.transfer.engine.feed import Listing
from tierstore.transfer.engine.journal import Journal
from tierstore.transfer.engine.run import Engine
from tierstore.wrappers.faults import Fault, Faulty

MIB = 1024**2
PART = 8 * MIB  # of a folder
LARGE = os.urandom(3 * PART + 4097)


class Run:
    """One life of a migration and what it said."""

    def __init__(self, tmp_path: Path, source: Faulty, target: Faulty, **how: object) -> None:
        self.reports: dict[str, tuple[str, str]] = {}
        self.source, self.target = source, target
        before = len(target.calls)
        journal = Journal(tmp_path / "journal", "from", "to")
        try:
            ends = Ends(source, target)
            found = objects(ends, how.pop("selection", Selection()))
            self.migration = Engine(
                ends.stores, journal, Listing(found), report=self._report, **how
            )
            self.totals = self.migration.run()
        finally:
            journal.close()
        calls = target.calls[before:]
        self.sent = [(c.key, c.offset) for c in calls if c.operation == "write"]

    def _report(self, report: m.Report) -> None:
        self.reports[report.key] = (report.outcome.value, report.reason)

    def outcome(self, key: str) -> str:
        return self.reports[key][0]

    def reason(self, key: str) -> str:
        return self.reports[key][1]


_opened: list[Faulty] = []


@pytest.fixture(autouse=True)
def _clean(no_leaks: None) -> Iterator[None]:
    """Threads go with a migration, descriptors with its stores."""
    yield
    while _opened:
        _opened.pop().close()


@pytest.fixture
def src(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    (folder / "sub").mkdir(parents=True)
    (folder / "large").write_bytes(LARGE)
    (folder / "empty").write_bytes(b"")
    for number in range(5):
        (folder / "sub" / f"{number}").write_bytes(os.urandom(number * 4000 + 1))
    return folder


def folder(path: Path, *faults: Fault) -> Faulty:
    _opened.append(Faulty(open_local(f"file://{path}"), *faults))
    return _opened[-1]


def memory(*faults: Fault) -> Faulty:
    return Faulty(open_memory(f"memory://{secrets.token_hex(8)}"), *faults)


def test_everything_arrives_and_once(src: Path, tmp_path: Path) -> None:
    source, target = folder(src), folder(tmp_path / "dst")
    done = Run(tmp_path, source, target)
    assert done.migration.complete
    assert contents(tmp_path / "dst") == contents(src)
    assert {outcome for outcome, _ in done.reports.values()} == {"copied"}
    assert len(done.sent) == len(set(done.sent)) == 4
    assert done.totals.sent == done.totals.found_bytes == done.totals.moved
    again = Run(tmp_path, source, target)
    assert {outcome for outcome, _ in again.reports.values()} == {"same"}
    assert again.totals.sent == 0
    # Without its journal everything is compared.
    (tmp_path / "journal").unlink()
    third = Run(tmp_path, source, target)
    assert {outcome for outcome, _ in third.reports.values()} == {"same"}
    assert third.totals.sent == 0


def test_the_first_byte_moves_before_the_listing_ends(tmp_path: Path) -> None:
    moved = threading.Event()

    class Endless(Faulty):
        def list(
            self, prefix: str, *, after: str | None = None, delimiter: bool = False
        ) -> Iterator[ObjectInfo]:
            for number, info in enumerate(super().list(prefix, after=after)):
                if number == 600:
                    assert moved.wait(PATIENCE), "nothing is copied while the listing goes on"
                yield info

    source = Endless(open_memory(f"memory://{secrets.token_hex(8)}"))
    for number in range(700):
        source.inner.create(f"{number:04}", b"x")
    target = memory(Fault("create", action=lambda _call: moved.set()))
    assert Run(tmp_path, source, target).totals.settled[Outcome.COPIED] == 700


@pytest.mark.parametrize("conflict", ["skip", "fail", "overwrite"])
@pytest.mark.parametrize("other", [b"another size", bytes(len(LARGE))])
def test_something_else_is_there(src: Path, tmp_path: Path, conflict: str, other: bytes) -> None:
    dst = tmp_path / "dst"
    dst.mkdir()
    (dst / "large").write_bytes(other)
    done = Run(tmp_path, folder(src), folder(dst), conflict=conflict)
    outcomes = {"skip": "kept", "fail": "failed", "overwrite": "copied"}
    assert done.outcome("large") == outcomes[conflict]
    assert (dst / "large").read_bytes() == (LARGE if conflict == "overwrite" else other)
    if conflict == "fail":
        assert done.reason("large") == "the destination already has something else there"
    assert done.totals.settled[Outcome.COPIED] == (7 if conflict == "overwrite" else 6)


@pytest.mark.parametrize("conflict", ["skip", "fail"])
@pytest.mark.parametrize("key", ["large", "sub/3"])
def test_something_else_comes_meanwhile(src: Path, tmp_path: Path, conflict: str, key: str) -> None:
    dst = tmp_path / "dst"

    def intrude(_call: object) -> None:
        (dst / key).parent.mkdir(exist_ok=True)
        (dst / key).write_bytes(b"faster")

    operation = "commit" if key == "large" else "create"
    target = folder(dst, Fault(operation, key=key, action=intrude))
    done = Run(tmp_path, folder(src), target, conflict=conflict)
    assert done.outcome(key) == ("kept" if conflict == "skip" else "failed")
    assert (dst / key).read_bytes() == b"faster"
    assert not list((dst / ".tierstore-tmp").iterdir())


@pytest.mark.parametrize("key", ["large", "sub/3"])
def test_the_source_changes(src: Path, tmp_path: Path, key: str) -> None:
    new = os.urandom(2 * PART if key == "large" else 77)
    changed = threading.Event()

    def change(_call: object) -> None:
        if not changed.is_set():
            changed.set()
            (src / key).write_bytes(new)

    fault = ("read_into", 2) if key == "large" else ("fetch", 1)
    source = folder(src, Fault(*fault, key=key, action=change))
    done = Run(tmp_path, source, folder(tmp_path / "dst"))
    assert done.outcome(key) == "copied"
    assert (tmp_path / "dst" / key).read_bytes() == new
    assert not list((tmp_path / "dst" / ".tierstore-tmp").iterdir())


def test_the_source_changes_for_ever(src: Path, tmp_path: Path) -> None:
    def change(_call: object) -> None:
        (src / "sub/3").write_bytes(os.urandom(9))

    source = folder(src, Fault("fetch", key="sub/3", times=99, action=change))
    done = Run(tmp_path, source, folder(tmp_path / "dst"))
    assert done.reports["sub/3"] == ("failed", "it changed again and again while it was read")
    assert not (tmp_path / "dst/sub/3").exists()
    assert done.totals.settled[Outcome.COPIED] == 6


def test_the_source_loses_an_object(src: Path, tmp_path: Path) -> None:
    gone = NotFoundError("no such object")
    source = folder(src, Fault("fetch", key="sub/3", error=gone))
    done = Run(tmp_path, source, folder(tmp_path / "dst"))
    assert done.reports["sub/3"] == ("failed", "no such object")
    assert done.migration.complete


@pytest.mark.parametrize("key", ["large", "sub/3"])
def test_a_read_error(src: Path, tmp_path: Path, key: str) -> None:
    operation = "read_into" if key == "large" else "fetch"
    fault = Fault(operation, key=key, error=TruncatedFileError("the disk is ill"), times=9)
    target = folder(tmp_path / "dst")
    done = Run(tmp_path, folder(src, fault), target)
    assert done.reports[key] == ("failed", "the disk is ill")
    assert done.totals.settled[Outcome.COPIED] == 6
    again = Run(tmp_path, folder(src), target)
    assert again.outcome(key) == "copied"
    assert contents(tmp_path / "dst") == contents(src)


@pytest.mark.parametrize("error", [OutOfSpaceError("it is full"), UnreachableError("it is away")])
def test_the_destination_is_full_or_away(src: Path, tmp_path: Path, error: Exception) -> None:
    fault = Fault("write", nth=3, error=error, times=99)
    done = Run(tmp_path, folder(src), folder(tmp_path / "dst", fault))
    assert not done.migration.complete
    assert done.migration.trouble == f"large: {error}"
    again = Run(tmp_path, folder(src), folder(tmp_path / "dst"))
    assert again.migration.complete
    assert again.totals.reused, "what was sent before counts"
    assert len(again.sent) == 2
    assert contents(tmp_path / "dst") == contents(src)


def test_permission_is_lost_half_way(src: Path, tmp_path: Path) -> None:
    for number in range(50):
        (src / f"many{number:03}").write_bytes(b"x")
    fault = Fault("create", nth=20, key="many", error=AccessError("denied"), times=99)
    done = Run(tmp_path, folder(src), folder(tmp_path / "dst", fault))
    assert done.totals.settled[Outcome.FAILED] == 31
    assert {reason for outcome, reason in done.reports.values() if reason} == {"denied"}
    again = Run(tmp_path, folder(src), folder(tmp_path / "dst"))
    settled = {outcome: number for outcome, number in again.totals.settled.items() if number}
    assert settled == {Outcome.COPIED: 31, Outcome.SAME: 26}


def test_what_was_given_ahead_is_not_begun_after_the_end(tmp_path: Path) -> None:
    source, begun, released = memory(), threading.Semaphore(0), threading.Event()
    for number in range(100):
        source.inner.create(f"{number:03}", b"x")

    def wait(_call: object) -> None:
        begun.release()
        assert released.wait(PATIENCE)

    target = memory(Fault("create", times=100, action=wait))
    ends = Ends(source, target)
    with closing(Journal(tmp_path / "journal", "from", "to")) as journal:
        migration = Engine(ends.stores, journal, Listing(objects(ends, Selection())))
        stopper = threading.Thread(target=lambda: begun.acquire() and migration.stop())
        stopper.start()
        totals = migration.run()  # waits for a while, not for these
        stopper.join()
        threads = [each for each in threading.enumerate() if "tierstore-engine" in each.name]
        released.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert totals.settled[Outcome.COPIED] == 0
    created = sum(call.operation == "create" for call in target.calls)
    assert 0 < created <= ends.stores.width < room_of(ends.stores)


def test_everything_fails(src: Path, tmp_path: Path) -> None:
    for number in range(300):
        (src / f"many{number:03}").write_bytes(b"x")
    (src / "large").unlink()
    fault = Fault("create", error=AccessError("denied"), times=9999)
    done = Run(tmp_path, folder(src), folder(tmp_path / "dst", fault))
    assert done.migration.trouble == "100 objects failed one after the other, the last: denied"
    assert done.totals.settled[Outcome.FAILED] <= 100 + room_of(
        Ends(done.source, done.target).stores
    )


@pytest.mark.parametrize("key", ["large", "sub/3"])
def test_the_destination_damages(src: Path, tmp_path: Path, key: str) -> None:
    """A folder has no checksums, so everything is read back."""
    operation = "write" if key == "large" else "create"
    target = folder(tmp_path / "dst", Fault(operation, key=key, flip=5))
    done = Run(tmp_path, folder(src), target)
    assert fired(target) == [1]
    if key == "large":  # the part is refused by the CRC32C of the file, and read back otherwise
        assert done.outcome(key) == "copied"
        assert contents(tmp_path / "dst") == contents(src)
    else:
        assert done.outcome(key) == "failed"
        assert "other bytes than it was sent" in done.reason(key)


def test_damage_that_is_read_back_is_sent_again(src: Path, tmp_path: Path) -> None:
    target = folder(tmp_path / "dst", Fault("read_into", key="large", flip=9))
    done = Run(tmp_path, folder(src), target)
    assert fired(target) == [1]
    assert done.outcome("large") == "copied"
    assert len(done.sent) == 4  # it was read back once more, from the whole
    assert contents(tmp_path / "dst") == contents(src)


def test_a_note_is_there_before_anything_relies_on_it(src: Path, tmp_path: Path) -> None:
    """A process that is killed in between is to find what it began."""
    begun: list[list[tuple[str, str]]] = []
    journal = tmp_path / "journal"

    def look(_call: object) -> None:
        begun.append(journal_rows(journal, "key, token FROM upload WHERE key = 'large'"))

    opens = Fault("upload", key="large", action=look)
    parts = Fault("write", key="large", action=look, times=99)
    Run(tmp_path, folder(src), folder(tmp_path / "dst", opens, parts))
    assert begun[0] == [("large", "")]
    assert len(begun) > 1
    assert all(len(rows) == 1 and rows[0][1] for rows in begun[1:])


def small_ones(journal: Path) -> list[tuple[str]]:
    return journal_rows(journal, "key FROM finished WHERE key GLOB 'sub/*'")


def test_nothing_small_has_arrived_before_it_is_flushed(src: Path, tmp_path: Path) -> None:
    flushed = threading.Event()

    def look(_call: object) -> None:
        assert flushed.is_set() or not small_ones(tmp_path / "journal")
        flushed.set()

    target = folder(tmp_path / "dst", Fault("flush", action=look, times=99))
    done = Run(tmp_path, folder(src), target)
    assert done.totals.settled[Outcome.COPIED] == 7
    assert flushed.is_set()
    flushes = [call for call in target.calls if call.operation == "flush"]
    assert len(flushes) <= 3, "many are flushed together"


def test_the_disk_fails_as_it_is_flushed(src: Path, tmp_path: Path) -> None:
    ill = StorageError("the disk failed")
    failing = Fault("flush", error=ill, times=99)  # what came late may be in a flush of its own
    done = Run(tmp_path, folder(src), folder(tmp_path / "dst", failing))
    assert "the disk failed" in done.migration.trouble
    assert not small_ones(tmp_path / "journal"), "none has arrived"
    again = Run(tmp_path, folder(src), folder(tmp_path / "dst"))
    assert again.migration.complete
    assert contents(tmp_path / "dst") == contents(src)


def test_the_journal_cannot_be_written(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_journal: Journal, *_records: object) -> None:
        raise StorageError("the journal cannot be written")

    monkeypatch.setattr(Journal, "append", full)
    with pytest.raises(StorageError, match="the journal cannot be written"):
        Run(tmp_path, folder(src), folder(tmp_path / "dst"))
    monkeypatch.undo()
    assert Run(tmp_path, folder(src), folder(tmp_path / "dst")).migration.complete
    assert contents(tmp_path / "dst") == contents(src)


def test_a_listing_that_fails(src: Path, tmp_path: Path) -> None:
    fault = Fault("list", error=AccessError("denied"), times=9)
    done = Run(tmp_path, folder(src, fault), folder(tmp_path / "dst"))
    assert done.migration.trouble == "cannot list: denied"
    assert not done.migration.complete


def test_large_parts_wait_for_memory() -> None:
    pools = PartMemory(256 * MIB, 8, 8)
    with pools.take(9 * MIB), pools.take(256 * MIB), pools.take(1), pools.take(8 * MIB):
        waiting = threading.Thread(target=lambda: pools.take(9 * MIB).__enter__(), daemon=True)
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()


def test_keys_that_the_destination_cannot_hold(tmp_path: Path) -> None:
    source = memory()
    for key in ("a", "a/b", "x" * 300, "good"):
        source.create(key, key.encode())
    done = Run(tmp_path, source, folder(tmp_path / "dst"))
    assert done.outcome("good") == "copied"
    assert done.outcome("x" * 300) == "left_out"
    assert {done.outcome("a"), done.outcome("a/b")} == {"copied", "failed"}
    assert done.migration.complete


def test_what_the_source_has_no_more_is_freed(src: Path, tmp_path: Path) -> None:
    fault = Fault("write", nth=3, error=AccessError("denied"), times=99)
    target = folder(tmp_path / "dst", fault)
    Run(tmp_path, folder(src), target)
    target.close()
    assert list((tmp_path / "dst/.tierstore-tmp").iterdir())
    (src / "large").unlink()
    Run(tmp_path, folder(src), folder(tmp_path / "dst"))
    assert not list((tmp_path / "dst/.tierstore-tmp").iterdir())
