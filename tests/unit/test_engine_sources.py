"""An object that several stores have is read from the next one where the first does not give it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tierstore.backend import Backend
from tierstore.backends.local.backend import open_local
from tierstore.backends.memory import open_memory
from tierstore.blocks import BLOCK_SIZE, block_crcs
from tierstore.errors import AccessError, IntegrityError, UnreachableError
from tierstore.transfer.engine.entries import Entry, Missed, Outcome
from tierstore.transfer.engine.feed import Inbox, Listing
from tierstore.transfer.engine.journal import Journal
from tierstore.transfer.engine.messages import Report
from tierstore.transfer.engine.records import Version
from tierstore.transfer.engine.run import Engine
from tierstore.transfer.engine.stores import Stores
from tierstore.wrappers.faults import Fault, Faulty

PART = 8 * 1024**2  # of a folder
LARGE = os.urandom(3 * PART + 5)
SMALL = os.urandom(100)
DATA = {"large": LARGE, "small": SMALL}
SIZES = pytest.mark.parametrize("key", ["large", "small"])
KNOWN = pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])


@pytest.fixture(autouse=True)
def _clean(no_leaks: None) -> None:
    pass


class Ladder:
    """Two folders that should have the same objects, a memory, and two destinations."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.stores: dict[str, Backend] = {}
        for name in ("fast", "slow"):
            (path / name).mkdir(parents=True)
            for key, data in DATA.items():
                (path / name / key).write_bytes(data)
            self.stores[name] = Faulty(open_local(f"file://{path}/{name}"))
        self.stores["folder"] = Faulty(open_local(f"file://{path}/folder"))
        self.stores["memory"] = Faulty(open_memory("memory://engine-sources"))
        self.engine: Engine | None = None

    def close(self) -> None:
        Stores(self.stores).close()

    def faulty(self, name: str, *faults: Fault) -> Faulty:
        """Have a store fail."""
        self.stores[name] = Faulty(self.stores[name].inner, *faults)
        return self.stores[name]

    def spoil(self, name: str, key: str) -> None:
        """Change a byte, behind the first part if there is more."""
        path = self._path / name / key
        data = bytearray(path.read_bytes())
        at = PART + 7 if len(data) > PART else 7
        data[at] ^= 1
        path.write_bytes(data)

    def entry(self, key: str, *, known: bool = True, **how: object) -> Entry:
        size = len(DATA[key])
        version = Version(size, 0.0)
        path = self._path / "fast" / key
        if path.exists():
            version = Version.of(self.stores["fast"].stat(key))
        blocks = tuple(block_crcs(memoryview(DATA[key]))) if known else ()
        made = Entry(key, version, blocks=blocks, sources=("fast", "slow"), target="folder")
        return replace(made, **how)  # type: ignore[arg-type]

    def move(self, *entries: Entry) -> list[Report]:
        """Move them; what is logged as an error is none."""
        stores = Stores(self.stores, ("folder", "memory"))
        reports: list[Report] = []
        with closing(Journal(self._path / "journal", "from", "to")) as journal:
            self.engine = Engine(stores, journal, Listing(entries), report=reports.append)
            self.engine.run()
        return reports

    def at(self, name: str, key: str) -> bytes:
        """What a store has."""
        store = self.stores[name]
        data = bytearray(store.stat(key).size)
        store.read_into(key, 0, memoryview(data))
        return bytes(data)


@pytest.fixture
def ladder(tmp_path: Path) -> Iterator[Ladder]:
    made = Ladder(tmp_path)
    yield made
    made.close()


def reads(store: Backend) -> int:
    assert isinstance(store, Faulty)
    return sum(call.operation in ("read_into", "fetch") for call in store.calls)


@SIZES
def test_a_good_first_source_is_the_only_one_that_is_asked(ladder: Ladder, key: str) -> None:
    (report,) = ladder.move(ladder.entry(key))
    assert (report.outcome, report.missed) == (Outcome.COPIED, ())
    assert ladder.at("folder", key) == DATA[key]
    assert isinstance(ladder.stores["slow"], Faulty)
    assert not ladder.stores["slow"].calls


@SIZES
def test_damage_at_the_first_source_is_read_from_the_next(
    ladder: Ladder, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    ladder.spoil("fast", key)
    with caplog.at_level(logging.WARNING, "tierstore"):
        (report,) = ladder.move(ladder.entry(key))
    assert report.outcome is Outcome.COPIED
    assert ladder.at("folder", key) == DATA[key]
    (missed,) = report.missed
    assert missed.source == "fast"
    block = PART // BLOCK_SIZE if key == "large" else 0
    assert missed.reason.startswith(f"block {block} of it is damaged at the source")
    assert f"{key} could not be read from {ladder.stores['fast'].url}: block" in caplog.text
    # What was good already is not sent again.
    sent = [c.offset for c in ladder.stores["folder"].calls if c.operation == "write"]
    assert len(sent) == len(set(sent)) == (4 if key == "large" else 0)
    assert ladder.engine is not None
    assert ladder.engine.totals.moved == ladder.engine.totals.found_bytes == len(DATA[key])


@SIZES
@KNOWN
def test_the_first_source_lacks_it(
    ladder: Ladder, tmp_path: Path, key: str, *, known: bool
) -> None:
    (tmp_path / "fast" / key).unlink()
    (report,) = ladder.move(ladder.entry(key, known=known))
    assert report.outcome is Outcome.COPIED
    assert [each.source for each in report.missed] == ["fast"]
    assert ladder.at("folder", key) == DATA[key]


@SIZES
@KNOWN
def test_the_first_source_does_not_answer(ladder: Ladder, key: str, *, known: bool) -> None:
    error = UnreachableError("nobody is there")
    faults = [Fault(operation, error=error, times=99) for operation in ("read_into", "fetch")]
    ladder.faulty("fast", *faults, Fault("stat", nth=2, error=error, times=99))
    (report,) = ladder.move(ladder.entry(key, known=known))
    assert report.outcome is Outcome.COPIED
    assert report.missed == (Missed("fast", "nobody is there"),)
    assert ladder.at("folder", key) == DATA[key]
    assert ladder.engine is not None
    assert not ladder.engine.trouble


def test_the_first_source_fails_half_way_and_nobody_knows_the_bytes(ladder: Ladder) -> None:
    """The next may have others, so none of the first is left in the copy."""
    other = os.urandom(len(LARGE))
    (ladder._path / "slow" / "large").write_bytes(other)
    ladder.faulty("fast", Fault("read_into", nth=3, error=AccessError("denied"), times=99))
    (report,) = ladder.move(ladder.entry("large", known=False))
    assert report.outcome is Outcome.COPIED
    assert ladder.at("folder", "large") == other


def test_all_sources_fail_and_each_reason_is_told(ladder: Ladder) -> None:
    for name in ("fast", "slow"):
        ladder.spoil(name, "large")
    (report,) = ladder.move(ladder.entry("large"))
    assert report.outcome is Outcome.FAILED
    assert [each.source for each in report.missed] == ["fast", "slow"]
    assert report.reason.startswith("fast: block 2 of it is damaged at the source")
    assert "; slow: block 2 of it is damaged" in report.reason
    assert not list(ladder.stores["folder"].list(""))


@KNOWN
def test_a_next_source_of_another_size_is_another_object(ladder: Ladder, *, known: bool) -> None:
    (ladder._path / "fast" / "small").unlink()
    (ladder._path / "slow" / "small").write_bytes(b"short")
    (report,) = ladder.move(ladder.entry("small", known=known))
    assert report.outcome is Outcome.FAILED
    assert "slow: it has 5 bytes" in report.reason


def test_a_first_source_that_was_cut_short_is_passed_over(ladder: Ladder) -> None:
    """Its manifest knows how long it is."""
    entry = ladder.entry("large")
    with (ladder._path / "fast" / "large").open("r+b") as file:
        file.truncate(PART)
    (report,) = ladder.move(entry)
    assert report.outcome is Outcome.COPIED
    assert ladder.at("folder", "large") == LARGE
    (missed,) = report.missed
    assert missed.reason == f"it has {PART} bytes at the source and {len(LARGE)} in its manifest"


def test_what_is_there_is_compared_with_the_next_source(ladder: Ladder) -> None:
    store = ladder.stores["folder"]
    store.create("large", LARGE)
    ladder.spoil("fast", "large")
    there = Version.of(store.stat("large"))
    (report,) = ladder.move(ladder.entry("large", there=there))
    assert report.outcome is Outcome.SAME
    ladder.spoil("folder", "large")
    (report,) = ladder.move(ladder.entry("large", there=Version.of(store.stat("large"))))
    assert report.outcome is Outcome.FAILED
    assert "something else there" in report.reason


def test_a_failing_destination_is_no_reason_to_read_elsewhere(ladder: Ladder) -> None:
    ladder.faulty("folder", Fault("write", error=IntegrityError("odd"), times=99))
    (report,) = ladder.move(ladder.entry("large"))
    assert (report.outcome, report.reason, report.missed) == (Outcome.FAILED, "odd", ())
    assert not reads(ladder.stores["slow"])


def test_an_upload_that_was_read_from_the_next_source_is_gone_on_with(ladder: Ladder) -> None:
    ladder.spoil("fast", "large")
    ladder.faulty("slow", Fault("read_into", error=UnreachableError("away"), times=99))
    (report,) = ladder.move(ladder.entry("large"))
    assert report.outcome is Outcome.FAILED
    sent = sum(c.operation == "write" for c in ladder.stores["folder"].calls)
    assert sent
    ladder.faulty("slow")
    ladder.faulty("folder")
    (report,) = ladder.move(ladder.entry("large"))
    assert report.outcome is Outcome.COPIED
    assert ladder.at("folder", "large") == LARGE
    assert ladder.engine is not None
    assert ladder.engine.totals.reused


# Destinations


def test_one_object_goes_to_two_stores_at_once(ladder: Ladder) -> None:
    entries = [
        ladder.entry(key, target=target, new_key=f"copy/{key}")
        for key in DATA
        for target in ("folder", "memory")
    ]
    reports = ladder.move(*entries)
    assert [report.outcome for report in reports] == [Outcome.COPIED] * 4
    for key, data in DATA.items():
        assert ladder.at("folder", f"copy/{key}") == ladder.at("memory", f"copy/{key}") == data
    again = ladder.move(
        *(
            replace(each, there=Version.of(ladder.stores[each.target].stat(each.target_key)))
            for each in entries
        )
    )
    assert [report.outcome for report in again] == [Outcome.SAME] * 4
    assert ladder.engine is not None
    assert not ladder.engine.totals.sent, "the journal knows each copy by its store"


def test_a_full_store_ends_a_listing_and_not_an_inbox(ladder: Ladder, tmp_path: Path) -> None:
    full = Fault("create", error=UnreachableError("away"), times=99)
    entries = [ladder.entry("small", target="memory"), ladder.entry("small")]
    ladder.faulty("memory", full)
    reports = ladder.move(entries[0])
    assert ladder.engine is not None
    assert ladder.engine.trouble == "small: away"
    inbox = Inbox()
    inbox.put(*entries)
    inbox.close()
    reports = []
    with closing(Journal(tmp_path / "other", "from", "to")) as journal:
        stores = Stores(ladder.stores, ("folder", "memory"))
        engine = Engine(stores, journal, inbox, report=reports.append)
        engine.run()
    assert {report.outcome for report in reports} == {Outcome.FAILED, Outcome.COPIED}
    assert engine.complete
