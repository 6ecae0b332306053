"""Two stores of a few small objects, where commands of a migration succeed, fail or are lost."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace

from tierstore.blocks import crc32c
from tierstore.transfer.engine import messages as m
from tierstore.transfer.engine.entries import SOURCE, Dead, Entry, Outcome
from tierstore.transfer.engine.machine import Machine, Past
from tierstore.transfer.engine.records import (
    TARGET,
    Begun,
    Finished,
    Receipt,
    Record,
    Version,
    Void,
)
from tierstore.transfer.engine.rules import Conflict, Destination, Orders
from tierstore.transfer.engine.tables import Tables, create

PART = 4
PAGE = 3
ALONE, PARTS, COMMITS = "abcdefgh", ("x1", "x2", "y1", "y2"), ("xz", "yz")


ARRIVED = (Outcome.COPIED, Outcome.SAME)
KNOWN = (Outcome.SAME, "")


@contextmanager
def replayed(records: Iterable[Record]) -> Iterator[Past]:
    """What the next life finds in a journal of these records."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        create(db, "from", "to")
        tables = Tables(db)
        for record in records:
            tables.put(record)
        yield tables.past()


@dataclass
class Store:
    """Objects and unfinished uploads."""

    objects: dict[str, tuple[bytes, float]] = field(default_factory=dict)
    uploads: dict[str, tuple[str, int, dict[int, bytes]]] = field(default_factory=dict)
    clock: float = 1000.0

    def put(self, key: str, data: bytes) -> float:
        self.clock += 10
        self.objects[key] = (data, self.clock)
        return self.clock

    def version(self, key: str) -> Version | None:
        held = self.objects.get(key)
        return Version(len(held[0]), held[1]) if held else None


@dataclass
class World:
    """Two stores, the journal, and what may go wrong how often."""

    chance: random.Random
    conflict: Conflict
    checked: bool
    parallel: bool
    crashes: int
    failures: int
    changes: int
    losses: int
    lies: int = 0
    removes: bool = False
    deaths: int = 0
    resumable: bool = True
    misses: int = 0
    source: Store = field(default_factory=Store)
    target: Store = field(default_factory=Store)
    journal: list[Record] = field(default_factory=list)
    outcomes: dict[str, tuple[Outcome, str]] = field(default_factory=dict)
    tokens: int = 0
    lost: set[tuple[int, int]] = field(default_factory=set)
    ours: set[str] = field(default_factory=set)
    troubled: set[str] = field(default_factory=set)
    original: dict[str, bytes] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)  # uploads of which the journal may have lost all
    open: dict[tuple[str, int], str] = field(default_factory=dict)
    hired: int = 0

    def rules(self) -> Orders:
        target = Destination(
            lambda _size: PART,
            reads_back=not self.checked,
            clean_copies=self.parallel,
            parallel=self.parallel,
        )
        return Orders({TARGET: target}, conflict=self.conflict, removes=self.removes, window=4)

    def migrate(self) -> Machine:
        """Live until nothing is left to do."""
        while True:
            machine = self.live()
            if not self.resumable:  # those end with whoever had them open
                self.target.uploads.clear()
            if machine is not None:
                return machine
            lines = self.chance.choice([0, 0, 0, 1, 2, 5])  # a host's crash takes some lines too
            del self.journal[len(self.journal) - min(lines, len(self.journal)) :]
            if lines:
                self.unknown |= set(self.target.uploads)
            if self.losses and self.target.uploads:
                self.losses -= 1
                self.lose(self.chance.choice(sorted(self.target.uploads)))

    def lose(self, token: str) -> None:
        """An upload expires."""
        key = self.target.uploads.pop(token)[0]
        self.troubled.add(key)
        for record in self.journal:
            if isinstance(record, Begun) and record.token == token:
                self.lost |= {(record.upload, index) for index in range(9)}

    def live(self) -> Machine | None:
        """One life; None if it ended by a crash."""
        with replayed(self.journal) as past:
            return self.play(Machine(self.rules(), past))

    def play(self, machine: Machine) -> Machine | None:
        """Carry out what a machine wants, until it is over or everything crashes."""
        self.outcomes, self.listed, self.waited = {}, "", False
        self.running: list[m.Command] = []
        self.machine, self.open, workers = machine, {}, [""]
        self.take(machine.begin())
        if self.deaths:
            workers = [self.hire(), self.hire()]
        else:
            self.take(machine.handle(m.Joined("", 3)))
        while not machine.over:
            assert self.running, "it waits for nothing"
            if self.deaths > 1 and self.chance.random() < 0.1:
                self.deaths -= 1
                if self.chance.random() < 0.5:
                    workers.append(self.hire())
                self.bury(workers.pop(self.chance.randrange(len(workers))))
                if not workers:
                    workers.append(self.hire())
                continue
            if self.crashes and self.chance.random() < 0.05:
                self.crashes -= 1
                if self.chance.random() < 0.3:
                    self.stop(machine)
                else:
                    for command in self.running:
                        if self.chance.random() < 0.5:
                            self.carry_out(command)
                return None
            if self.changes and self.chance.random() < 0.1:
                self.changes -= 1
                self.change()
            at = self.chance.randrange(len(self.running))
            event = self.answer(self.running.pop(at))
            told = machine.handle(event)
            if isinstance(event, m.Sent) and self.resumable:
                assert m.Note(Receipt(event.job, event.index, event.crc)) in told
            self.take(told)
        return machine

    def stop(self, machine: Machine) -> None:
        """Somebody has seen enough: what is under way ends and is noted, nothing else begins."""
        noted = machine.handle(m.Stop())
        assert noted == []
        for command in self.running:
            if not isinstance(command, m.More | m.Wait):
                noted += machine.handle(self.answer(command))
        assert machine.over
        assert machine.stopped
        assert {type(command) for command in noted} <= {m.Note, m.Report}
        self.running = []
        self.take(noted)

    def hire(self) -> str:
        """A worker comes."""
        self.hired += 1
        self.take(self.machine.handle(m.Joined(f"w{self.hired}", 2)))
        return f"w{self.hired}"

    def bury(self, worker: str) -> None:
        """A worker is lost: nobody knows how much was carried out of what it was at."""
        theirs = [
            c for c in self.running if not isinstance(c, m.More | m.Wait) and self.at(c) == worker
        ]
        for command in theirs:
            if self.chance.random() < 0.5:
                self.carry_out(command)
            self.running.remove(command)
        for place, token in self.open.items() if not self.resumable else ():
            if place[0] == worker:
                self.target.uploads.pop(token, None)
        self.open = {place: token for place, token in self.open.items() if place[0] != worker}
        self.take(self.machine.handle(m.Left(worker)))

    def at(self, command: m.Command) -> str:
        return self.machine.worker(command.job)

    def change(self) -> None:
        """Somebody writes at the source or at the destination."""
        key = self.chance.choice([*ALONE, *PARTS])
        store = self.chance.choice([self.source, self.source, self.target])
        self.trouble(key)
        if store is self.source and self.chance.random() < 0.3:
            store.objects.pop(key, None)
        else:
            store.put(key, self.chance.randbytes(self.chance.randrange(14)))

    def trouble(self, key: str) -> None:
        """What happens to an object is no longer for sure, nor what to its commit."""
        self.troubled |= {key, key[0] + "z"}

    def take(self, commands: list[m.Command]) -> None:
        for command in commands:
            if isinstance(command, m.Note):
                self.journal.append(command.record)
            elif isinstance(command, m.Report):
                swept = command.key in "xy"  # what a checkpoint has left could not be removed
                assert swept or command.key not in self.outcomes, "an object is reported once"
                self.outcomes[command.key] = (command.outcome, command.reason)
            else:
                self.check_start(command)
                self.running.append(command)
        tasks = [self.at(c) for c in self.running if not isinstance(c, m.More | m.Wait)]
        assert all(tasks.count(worker) <= (2 if worker else 3) for worker in tasks)
        assert len(self.running) - len(tasks) <= 1

    def check_start(self, command: m.Command) -> None:
        if isinstance(command, m.Copy | m.Open) and command.entry.seals:
            lost = {key for key, (outcome, _) in self.outcomes.items() if outcome not in ARRIVED}
            assert not {key for key in PARTS if key[0] in command.entry.seals} & lost
        if isinstance(command, m.Sweep):
            assert self.waited
        if isinstance(command, m.Wait):
            assert not self.running, "readers of the last to go have their time, too"
        if isinstance(command, m.Send):
            sent_again = command.index in self.noted(command.job)
            assert not sent_again or (command.job, command.index) in self.lost
            alike = [c for c in self.running if isinstance(c, m.Send) and c.job == command.job]
            assert self.parallel or not alike
        assert command not in self.running
        if isinstance(command, m.Copy | m.Commit) and command.replace:
            overwrites = self.conflict == "overwrite" and not command.entry.seals
            assert overwrites or command.entry.key in self.ours

    def noted(self, upload: int) -> set[int]:
        """Return the parts of an upload that the journal has; a later life may use its number."""
        parts: set[int] = set()
        for record in self.journal:
            if record.upload == upload and isinstance(record, Void | Finished):
                parts.clear()
            elif record.upload == upload and isinstance(record, Receipt):
                parts.add(record.index)
        return parts

    def answer(self, command: m.Command) -> m.Event:
        reads = isinstance(command, m.Look | m.Compare | m.Copy | m.Send | m.Commit)
        if self.misses and reads and command.entry.source == SOURCE and self.chance.random() < 0.2:
            self.misses -= 1
            return m.Failed(command.job, "the first source does not give it", missed=True)
        can_fail = not isinstance(command, m.More | m.Discard | m.Wait)
        if can_fail and self.failures and self.chance.random() < 0.05:
            self.failures -= 1
            if not isinstance(command, m.Sweep):
                self.trouble(command.entry.key)
            if self.chance.random() < 0.3:
                self.carry_out(command)
            return m.Failed(command.job, "as the test wants it")
        return self.carry_out(command)

    def carry_out(self, command: m.Command) -> m.Event:
        name = type(command).__name__.lower()
        event: m.Event = getattr(self, f"_{name}")(command)
        return event

    # What a worker does

    def _more(self, command: m.More) -> m.Event:
        keys = sorted(key for key in self.source.objects if key > self.listed)[:PAGE]
        entries, dead = [], []
        for key in keys:
            version, group = self.source.version(key), key[0] if key in PARTS else ""
            assert version is not None
            seals = (key[0],) if key in COMMITS else ()
            if (seals or group) and self.source.objects.get(key[0] + "z", (b"?",))[0] == b"":
                dead += [Dead(key, key[0])] if seals else []
                continue
            entries.append(self.entry(key, version, group, seals))
        self.listed = keys[-1] if keys else self.listed
        return m.Fed(tuple(entries), last=len(keys) < PAGE, dead=tuple(dead))

    def entry(self, key: str, version: Version, group: str, seals: tuple[str, ...]) -> Entry:
        entry = Entry(key, version, self.target.version(key), group, seals)
        if not self.misses:
            return entry
        known = version.size and self.chance.random() < 0.5
        blocks = (crc32c(self.source.objects[key][0]),) if known else ()
        return replace(entry, blocks=blocks, sources=(SOURCE, "spare"))

    def _wait(self, _command: m.Wait) -> m.Event:
        self.waited = True
        return m.Waited()

    def _remove(self, command: m.Remove) -> m.Event:
        key = command.entry.key
        version = self.source.version(key)
        if version is None or (command.entry.seals and not version.size):
            return m.Removed(command.job)
        if not version.same(command.entry.version):
            return m.Removed(command.job, changed=True)
        parts = [part for part in PARTS if part[0] in command.entry.seals]
        for moved in (key, *(part for part in parts if part in self.source.objects)):
            if moved not in self.troubled:
                assert self.target.objects[moved][0] == self.source.objects[moved][0]
        if command.entry.seals:
            self.source.put(key, b"")
        else:
            assert key not in PARTS
            del self.source.objects[key]
        return m.Removed(command.job)

    def _sweep(self, command: m.Sweep) -> m.Event:
        assert self.source.objects[command.dead.commit][0] == b""
        for key in PARTS:
            if key[0] == command.dead.group:
                self.source.objects.pop(key, None)
        return m.Removed(command.job)

    def bytes_of(self, entry: Entry) -> bytes | None:
        held = self.source.objects.get(entry.key)
        return held[0] if held else None

    def unlike(self, job: int, entry: Entry) -> m.Event | None:
        """What the source having something else is answered with."""
        version = self.source.version(entry.key)
        if version is None:
            return m.Failed(job, "not found")
        return None if version.same(entry.version) else m.Changed(job, version)

    def damaged(self, job: int, entry: Entry) -> m.Event | None:
        """What bytes that are not those of the manifest are answered with."""
        data = self.bytes_of(entry)
        if data is None or not entry.blocks or crc32c(data) == entry.blocks[0]:
            return None
        return self.unlike(job, entry) or m.Failed(job, "damaged", missed=True)

    def _look(self, command: m.Look) -> m.Event:
        if unlike := self.unlike(command.job, command.entry):
            return unlike
        held = self.target.objects.get(command.entry.key)
        data = self.bytes_of(command.entry)
        assert data is not None
        source = self.chance.choice([None, crc32c(data)])
        crc = crc32c(held[0]) if held and self.checked else None
        return m.Looked(command.job, source, self.target.version(command.entry.key), crc)

    def _compare(self, command: m.Compare) -> m.Event:
        if damaged := self.damaged(command.job, command.entry):
            return damaged
        cut = slice(command.offset, command.offset + command.length)
        data = (self.bytes_of(command.entry) or b"")[cut]
        other = self.target.objects.get(command.entry.key, (b"", 0.0))[0][cut]
        if len(data) < command.length or len(other) < command.length:
            return m.Failed(command.job, "truncated")
        seen = crc32c(other) if command.both else None
        return m.Compared(command.job, command.index, crc32c(data), seen)

    def _copy(self, command: m.Copy) -> m.Event:
        if unlike := self.unlike(command.job, command.entry):
            return unlike
        if damaged := self.damaged(command.job, command.entry):
            return damaged
        data = self.bytes_of(command.entry)
        assert data is not None
        return self.publish(command.job, command.entry.key, data, command.replace, m.Copied)

    def publish(self, job: int, key: str, data: bytes, replaces: bool, event: type) -> m.Event:
        held = self.target.objects.get(key)
        if held and not replaces:
            same = held[0] == data
            return event(job, Version(len(data), held[1])) if same else m.Conflicted(job)
        if self.lies and len(data) > PART and not self.checked:
            self.lies -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.ours.add(key)
        return event(job, Version(len(data), self.target.put(key, data)))

    def _open(self, command: m.Open) -> m.Event:
        size = command.entry.version.size
        if not command.token:
            self.tokens += 1
            token = f"t{self.tokens}"
            self.target.uploads[token] = (command.entry.key, size, {})
            self.open[self.at(command), command.job] = token
            return m.Opened(command.job, token if self.resumable else "")
        if command.token not in self.target.uploads:
            return m.Gone(command.job)
        self.open[self.at(command), command.job] = command.token
        parts = self.target.uploads[command.token][2]
        done = tuple((index * PART, len(part)) for index, part in sorted(parts.items()))
        return m.Opened(command.job, command.token, done)

    def _send(self, command: m.Send) -> m.Event:
        upload = self.target.uploads.get(self.open[self.at(command), command.job])
        data = self.bytes_of(command.entry)
        if data is None or upload is None:
            return m.Failed(command.job, "not found")
        if damaged := self.damaged(command.job, command.entry):
            return damaged
        part = data[command.offset : command.offset + command.length]
        if len(part) < command.length:
            version = self.source.version(command.entry.key)
            assert version is not None
            return m.Changed(command.job, version)
        upload[2][command.index] = part
        read_back = not (self.checked or self.lies) and self.chance.random() < 0.8
        return m.Sent(command.job, command.index, crc32c(part), checked=read_back)

    def _commit(self, command: m.Commit) -> m.Event:
        if unlike := self.unlike(command.job, command.entry):
            return unlike
        token = self.open[self.at(command), command.job]
        if token not in self.target.uploads:
            return m.Failed(command.job, "not found")
        key, size, parts = self.target.uploads[token]
        if self.losses and parts and self.chance.random() < 0.2:
            self.losses -= 1
            index = self.chance.choice(sorted(parts))
            del parts[index]
            self.lost.add((command.job, index))
            if not self.resumable:
                self.troubled.add(key)
        data = b"".join(parts.get(index, b"") for index in range(-(-size // PART)))
        if len(data) < size:
            return m.Short(command.job)
        assert crc32c(data) == command.crc
        event = self.publish(command.job, key, data, command.replace, m.Committed)
        if isinstance(event, m.Committed):
            del self.target.uploads[token]
        return event

    def _check(self, command: m.Check) -> m.Event:
        held = self.target.objects.get(command.entry.key, (b"", 0.0))[0]
        part = held[command.offset : command.offset + command.length]
        if len(part) < command.length:
            return m.Failed(command.job, "truncated")
        return m.Checked(command.job, command.index, crc32c(part))

    def _discard(self, command: m.Discard) -> m.Event:
        held = self.target.uploads
        unnamed = [token for token, (key, _, _) in held.items() if key == command.key]
        for token in [command.token] if command.token else unnamed:
            held.pop(token, None)
        return m.Discarded(command.job)
