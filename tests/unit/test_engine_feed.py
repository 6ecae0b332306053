"""What an engine is fed with may come at any time, and what is urgent goes first."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.patience import PATIENCE
from tierstore.backends.memory import MemoryBackend, open_memory
from tierstore.errors import AccessError
from tierstore.migration.ends import Ends
from tierstore.transfer.engine import messages as m
from tierstore.transfer.engine.entries import Entry, Item, Outcome
from tierstore.transfer.engine.feed import Feed, Inbox, Listing
from tierstore.transfer.engine.journal import Journal
from tierstore.transfer.engine.machine import Machine
from tierstore.transfer.engine.records import TARGET, Version
from tierstore.transfer.engine.rules import Destination, Orders
from tierstore.transfer.engine.run import Engine


@pytest.fixture(autouse=True)
def _clean(no_leaks: None) -> None:
    pass


class Fed:
    """An engine between two memories in a thread of its own, and what it reports."""

    def __init__(self, path: Path, feed: Feed) -> None:
        self.source = open_memory("memory://engine-feed/from")
        self.target = open_memory("memory://engine-feed/to")
        assert isinstance(self.source, MemoryBackend)
        self.reports: queue.SimpleQueue[m.Report] = queue.SimpleQueue()
        self._journal = Journal(path / "journal", "from", "to")
        ends = Ends(self.source, self.target)
        self.engine = Engine(ends.stores, self._journal, feed, report=self.reports.put)
        self._thread = threading.Thread(target=self.engine.run, name="tierstore-test-engine")

    @contextmanager
    def running(self) -> Iterator[None]:
        with closing(self._journal):
            self._thread.start()
            try:
                yield
                self._thread.join(PATIENCE)
                assert not self._thread.is_alive(), "it ends with its feed"
            finally:
                self.engine.stop()
                self._thread.join(PATIENCE)

    def entry(self, key: str, **how: object) -> Entry:
        """An object of the source."""
        self.source.create(key, key.encode(), if_absent=False)
        return Entry(key, Version.of(self.source.stat(key)), **how)  # type: ignore[arg-type]

    def next(self) -> str:
        """Wait for an object to arrive."""
        report = self.reports.get(timeout=PATIENCE)
        assert report.outcome is Outcome.COPIED
        return report.key


def test_items_come_over_time_none_for_a_while_and_then_the_end(tmp_path: Path) -> None:
    inbox = Inbox()
    fed = Fed(tmp_path, inbox)
    with fed.running():
        inbox.put(fed.entry("a"))
        assert fed.next() == "a"
        with pytest.raises(queue.Empty):  # nothing for now is no end
            fed.reports.get(timeout=0.5)
        assert not fed.engine.complete
        inbox.put(fed.entry("b"), fed.entry("c"))
        assert {fed.next(), fed.next()} == {"b", "c"}
        inbox.close()
    assert fed.engine.complete
    assert fed.engine.totals.settled[Outcome.COPIED] == 3
    with pytest.raises(ValueError, match="closed"):
        inbox.put(Entry("d", Version(0, 0.0)))


def test_items_come_while_others_are_under_way(tmp_path: Path) -> None:
    inbox = Inbox()
    fed = Fed(tmp_path, inbox)
    begun, released = threading.Event(), threading.Event()
    fetch = fed.source.fetch

    def slow(key: str, buffer: memoryview) -> object:
        if key == "slow":
            begun.set()
            assert released.wait(PATIENCE)
        return fetch(key, buffer)

    fed.source.fetch = slow  # type: ignore[method-assign, assignment]
    with fed.running():
        inbox.put(fed.entry("slow"))
        assert begun.wait(PATIENCE)
        inbox.put(fed.entry("quick"))
        assert fed.next() == "quick"
        released.set()
        assert fed.next() == "slow"
        inbox.close()


def test_what_is_in_the_box_as_it_is_closed_is_moved(tmp_path: Path) -> None:
    inbox = Inbox()
    fed = Fed(tmp_path, inbox)
    inbox.put(*(fed.entry(f"{number:03}") for number in range(700)))
    inbox.close()
    with fed.running():
        pass
    assert fed.engine.totals.settled[Outcome.COPIED] == 700


def test_an_engine_that_stops_closes_its_feed(tmp_path: Path) -> None:
    """Otherwise a thread would wait for ever, and a feeder would go on for nobody."""
    inbox = Inbox()
    fed = Fed(tmp_path, inbox)
    with fed.running():
        inbox.put(fed.entry("a"))
        fed.next()
        fed.engine.stop()
    with pytest.raises(ValueError, match="closed"):
        inbox.put(fed.entry("b"))


def test_a_feed_that_fails_ends_it(tmp_path: Path) -> None:
    def found() -> Iterator[Item]:
        yield from ()
        raise AccessError("no rights")

    fed = Fed(tmp_path, Listing(found()))
    with fed.running():
        pass
    assert fed.engine.trouble == "cannot list: no rights"


# Priorities


def machine(width: int) -> tuple[Machine, list[m.Command]]:
    """A machine that was asked for more, and a worker."""
    made = Machine(Orders({TARGET: Destination(lambda _size: 4)}))
    told = [*made.begin(), *made.handle(m.Joined("", width))]
    assert told == [m.More()]
    return made, told


def entry(key: str, priority: int = 0, **how: object) -> Entry:
    return Entry(key, Version(1, 1.0), priority=priority, **how)  # type: ignore[arg-type]


def begun(commands: list[m.Command]) -> list[str]:
    """The keys of the objects that are to be copied now."""
    return [command.entry.key for command in commands if isinstance(command, m.Copy)]


def copied(made: Machine, commands: list[m.Command], key: str) -> list[m.Command]:
    job = next(c.job for c in commands if isinstance(c, m.Copy) and c.entry.key == key)
    return made.handle(m.Copied(job, Version(1, 2.0)))


def test_what_is_more_urgent_overtakes_what_waits_and_equals_keep_their_order() -> None:
    made, _ = machine(1)
    told = made.handle(m.Fed((entry("a"), entry("b"), entry("c")), last=False))
    assert begun(told) == ["a"]
    made.handle(m.Fed((entry("low", -1), entry("urgent", 5), entry("urgent too", 5)), last=True))
    order, key = [], "a"
    while not made.over:
        told = copied(made, told, key)
        order += begun(told)
        key = order[-1]
    assert order == ["urgent", "urgent too", "b", "c", "low"]


def test_a_large_object_that_was_begun_lets_a_more_urgent_one_pass() -> None:
    made, _ = machine(1)
    large = Entry("large", Version(12, 1.0))
    (opening,) = (c for c in made.handle(m.Fed((large,), last=False)) if isinstance(c, m.Open))
    told = made.handle(m.Opened(opening.job, "token"))
    assert any(isinstance(c, m.Send) for c in told)
    made.handle(m.Fed((entry("urgent", 1), entry("not")), last=True))
    told = made.handle(m.Sent(opening.job, 0, 0))
    assert begun(told) == ["urgent"]
    told = copied(made, told, "urgent")
    assert [c.index for c in told if isinstance(c, m.Send)] == [1]


def test_an_urgent_commit_still_follows_what_it_relies_on() -> None:
    made, _ = machine(4)
    part = entry("part", -9, group="g")
    told = made.handle(m.Fed((part, entry("commit", 9, seals=("g",)), entry("x")), last=True))
    assert begun(told) == ["x", "part"]
    told = copied(made, told, "part")
    assert begun(told) == ["commit"]
