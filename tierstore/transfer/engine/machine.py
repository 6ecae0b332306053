"""Moving objects as a state machine: events in, commands out, no I/O.

It asks its feed for more while it has little left to begin, so that copying starts with the first
page, and so that memory does not grow with the number of objects. Objects that were begun are
finished before others are begun, unless those are more urgent, and a commit is begun once all that
it relies on has arrived. Whoever carries out the commands may come and go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tierstore.transfer.engine.assignment import Assignment
from tierstore.transfer.engine.backlog import Backlog
from tierstore.transfer.engine.commit_barrier import CommitBarrier
from tierstore.transfer.engine.entries import Dead, Entry, Missed, Outcome
from tierstore.transfer.engine.messages import (
    Answer,
    Broken,
    Command,
    Event,
    Failed,
    Fed,
    Flushing,
    Joined,
    Left,
    More,
    Note,
    Opened,
    Report,
    Stop,
    Sweep,
    Task,
    Wait,
    Waited,
)
from tierstore.transfer.engine.one_object import OneObject
from tierstore.transfer.engine.records import (
    Held,
    Version,
)
from tierstore.transfer.engine.rules import SMALL, Beginning, Earlier, Orders

_GIVE_UP = 100
_ARRIVED = (Outcome.COPIED, Outcome.SAME)


@dataclass(frozen=True, slots=True)
class Past:
    """What an earlier life has left in the journal.

    Attributes:
        held: by store and key, the uploads that were begun and not finished.
        finished: tells whether that store's object of that key, the second version, was verified
            to be the source's, the first.
        uploads: the highest number that an upload has.
    """

    held: Mapping[tuple[str, str], Held] = field(default_factory=dict)
    finished: Callable[[str, str, Version, Version], bool] = lambda *_of: False
    uploads: int = 0


@dataclass(slots=True)
class Totals:
    """How far it is.

    Attributes:
        found: objects that the feed gave.
        found_bytes: their bytes.
        listed: whether the feed has ended.
        settled: objects that are over, by outcome.
        bytes: of the objects with each outcome.
        moved: bytes that need not be moved any more.
        sent: bytes of parts and small objects that were sent.
        reused: bytes that an earlier life had sent of objects that were not finished.
        created: objects that were copied where nothing had been.
        removed: objects, or checkpoints as a whole, that were removed from the source.
        workers: that carry out commands now.
    """

    found: int = 0
    found_bytes: int = 0
    listed: bool = False
    settled: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    bytes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    moved: int = 0
    sent: int = 0
    reused: int = 0
    created: int = 0
    removed: int = 0
    workers: int = 0


class Machine:
    """See the module.

    Attributes:
        totals: how far it is.
        trouble: why it ended before its end; empty if it did not.
    """

    def __init__(self, rules: Orders, past: Past | None = None) -> None:
        self.totals = Totals()
        self.trouble = ""
        self._rules = rules
        past = past or Past()
        self._finished = past.finished
        # What was begun at a store that is unknown now waits for a life that knows it.
        self._held = {at: held for at, held in past.held.items() if at[0] in rules.targets}
        self._number = past.uploads
        self._backlog = Backlog()
        self._barrier = CommitBarrier()
        self._active: dict[int, OneObject] = {}
        self._ready: set[tuple[int, int]] = set()  # those that may have a command now, by rank
        self._flushing: dict[int, OneObject] = {}
        self._dead: list[Dead] = []
        self._sweeping: dict[int, Dead] = {}
        self._waits: bool | None = None  # not yet, now, no more
        self._assignment = Assignment()
        self._asking = self._stopped = False
        self._failed_in_a_row = 0

    @property
    def over(self) -> bool:
        """Whether nothing is under way and nothing will be."""
        if self._assignment.busy or self._flushing:
            return False
        return self._stopped or (self._settled and not (self._held or self._dead))

    @property
    def _settled(self) -> bool:
        """Whether every object is."""
        under_way = self._backlog or self._active or self._flushing or self._barrier
        return self.totals.listed and not under_way

    @property
    def stopped(self) -> bool:
        """Whether it ends, or has ended, before everything was looked at."""
        return self._stopped

    def begin(self) -> list[Command]:
        """Return the first commands."""
        return self._commands([])

    def handle(self, event: Event) -> list[Command]:
        """Take an event and return what to do now, in this order."""
        out: list[Command] = []
        match event:
            case Fed():
                self._fed(event, out)
            case Stop():
                self._stopped = True
            case Waited():
                self._waits = False
            case Broken():
                self._break(event.reason)
            case Joined():
                self._assignment.join(event.worker, event.width)
                self.totals.workers += 1
            case Left():
                self._left(event, out)
            case Flushing():
                self._assignment.answered(event.job)
                job = self._flushing[event.job] = self._active.pop(event.job)
                self._ready.discard(job.rank)
            case _ if event.job in self._sweeping:
                self._swept(event, out)
            case _:
                self._answered(event, out)
        return self._commands(out)

    def worker(self, number: int) -> str:
        """Return who carries out the commands of an object that has one under way."""
        return self._assignment.of(number)

    def _commands(self, out: list[Command]) -> list[Command]:
        room = len(self._flushing) < self._rules.window
        while room and not self._stopped and self._assignment.has_room():
            task = self._next(out)
            if task is None:
                break
            self._assignment.take(task.job, self._weight(task.job))
            out.append(task)
        hungry = len(self._backlog) <= self._rules.window // 2
        if hungry and not (self._asking or self._stopped or self.totals.listed):
            self._asking = True
            out.append(More())
        if self._dead and self._settled and self._waits is None and not self._stopped:
            self._waits = True
            out.append(Wait())
        return out

    def _next(self, out: list[Command]) -> Task | None:
        for below, number in sorted(self._ready):
            if task := self._start_above(-below, out):
                return task
            if self._assignment.has_room(number) and (
                task := self._task(self._active[number], out)
            ):
                return task
        if task := self._start_above(-math.inf, out):
            return task
        if not self.totals.listed:
            return None
        return self._leftover(out) or self._sweep()

    def _start_above(self, priority: float, out: list[Command]) -> Task | None:
        """Begin an object that is more urgent than that."""
        while self._backlog.priority > priority:
            entry = self._backlog.pop()
            if task := self._start(entry, self._held.pop(entry.place, None), out):
                return task
        return None

    def _begin(self, job: OneObject) -> OneObject:
        self._active[job.number] = job
        self._ready.add(job.rank)
        return job

    def _task(self, job: OneObject, out: list[Command]) -> Task | None:
        task = job.next()
        if task is None:
            self._ready.discard(job.rank)  # until it is answered
        self._note(job, out)
        return task

    def _weight(self, number: int) -> int:
        """Return how much of a worker's width a command about an object takes."""
        job = self._active.get(number)
        return self._rules.heavy if job and job.entry.version.size > SMALL else 1

    def _note(self, job: OneObject, out: list[Command]) -> None:
        out.extend(Note(record) for record in job.records)
        job.records.clear()

    def _start(self, entry: Entry, held: Held | None, out: list[Command]) -> Task | None:
        if held is None:
            self._number += 1
        number = held.begun.upload if held else self._number
        state = Beginning.FINISHED if self._is_finished(entry) else Beginning.NEW
        job = self._begin(OneObject(number, entry, self._rules, held=held, state=state))
        self._settle(job, out)
        return self._task(job, out)

    def _leftover(self, out: list[Command]) -> Task | None:
        """Free what was begun of objects that the source has no more."""
        if not self._held:
            return None
        (store, key), held = self._held.popitem()
        number, gone = held.begun.upload, Entry(key, held.begun.version, target=store)
        state = Beginning.ABANDONED
        job = self._begin(OneObject(number, gone, self._rules, held=held, state=state))
        return self._task(job, out)

    def _sweep(self) -> Task | None:
        """Remove what deleted checkpoints have left, once their readers had their time."""
        if not self._dead or self._waits is not False:
            return None
        self._number += 1
        dead = self._sweeping[self._number] = self._dead.pop()
        return Sweep(self._number, dead)

    def _swept(self, event: Answer, out: list[Command]) -> None:
        self._assignment.answered(event.job)
        self._assignment.forget(event.job)
        dead = self._sweeping.pop(event.job)
        if isinstance(event, Failed):
            out.append(Report(dead.group, Outcome.FAILED, 0, event.reason))

    def _fed(self, event: Fed, out: list[Command]) -> None:
        self._asking = False
        totals = self.totals
        totals.listed = event.last
        if self._rules.removes and not self._rules.dry:
            self._dead += event.dead
        for left in event.left_out:
            report = Report.of(left)
            totals.found += 1
            totals.settled[report.outcome] += 1
            out.append(report)
        for entry in event.entries:
            totals.found += 1
            totals.found_bytes += entry.version.size
            if self._barrier.add(entry):
                self._admit(entry, out)

    def _admit(self, entry: Entry, out: list[Command]) -> None:
        """Have an object begun, unless it is over at once."""
        if trouble := entry.trouble or self._barrier.trouble(entry):
            self._count(entry, Outcome.FAILED, out, trouble)
        elif self._is_finished(entry) and (entry.group or not self._rules.removes):
            self._count(entry, Outcome.SAME, out)
        elif entry.seals:  # it makes a checkpoint of what was moved already
            self._backlog.add(entry, first=True)
        else:
            self._backlog.add(entry)

    def _is_finished(self, entry: Entry) -> bool:
        if entry.there is None or not self._rules.trusts:
            return False
        return self._finished(*entry.place, entry.version, entry.there)

    def _answered(self, event: Answer, out: list[Command]) -> None:
        if event.job in self._flushing:
            job = self._active[event.job] = self._flushing.pop(event.job)
        else:
            self._assignment.answered(event.job)
            job = self._active[event.job]
        self._ready.add(job.rank)
        moved, sent = job.moved, job.sent
        job.answer(event)
        self.totals.moved += job.moved - moved
        self.totals.sent += job.sent - sent
        if isinstance(event, Opened):
            self.totals.reused += max(0, job.moved - moved)
        self._note(job, out)
        self._settle(job, out)

    def _left(self, event: Left, out: list[Command]) -> None:
        self.totals.workers -= 1
        for number in self._assignment.leave(event.worker):
            if dead := self._sweeping.pop(number, None):
                self._dead.append(dead)
            if job := self._active.get(number):
                moved = job.moved
                job.lost()
                self._ready.add(job.rank)
                self.totals.moved += job.moved - moved
                self._note(job, out)
                self._settle(job, out)

    def _settle(self, job: OneObject, out: list[Command]) -> None:
        """Let go of a job that is over."""
        if not job.over:
            return
        del self._active[job.number]
        self._ready.discard(job.rank)
        self._assignment.forget(job.number)
        if job.again is not None:
            self.totals.moved -= job.moved
            self.totals.found_bytes += job.again.version.size - job.entry.version.size
            self._number += 1
            earlier = Earlier(job.tries, job.ours, job.missed)
            again = OneObject(self._number, job.again, self._rules, earlier=earlier)
            self._settle(self._begin(again), out)
        elif job.outcome is not None:
            self.totals.moved -= job.moved
            self.totals.removed += job.removed
            if job.removed and job.entry.seals and not self._rules.dry:
                entry = job.entry
                dead = Dead(entry.key, entry.seals[0], entry.source, entry.target)
                self._dead.append(dead)
            self._count(job.entry, job.outcome, out, job.reason, job.missed)
            if job.fatal and not self._rules.goes_on:
                self._break(f"{job.entry.key}: {job.reason}")

    def _count(
        self,
        entry: Entry,
        outcome: Outcome,
        out: list[Command],
        reason: str = "",
        missed: tuple[Missed, ...] = (),
    ) -> None:
        size, totals = entry.version.size, self.totals
        totals.settled[outcome] += 1
        totals.bytes[outcome] += size
        totals.created += outcome is Outcome.COPIED and entry.there is None
        totals.moved += size
        out.append(Report(entry.key, outcome, size, reason, missed=missed))
        failed = outcome is Outcome.FAILED
        self._failed_in_a_row = self._failed_in_a_row + 1 if failed else 0
        if self._failed_in_a_row == _GIVE_UP and not self._rules.goes_on:
            self._break(f"{_GIVE_UP} objects failed one after the other, the last: {reason}")
        for commit in self._barrier.settle(entry, arrived=outcome in _ARRIVED):
            self._admit(commit, out)

    def _break(self, reason: str) -> None:
        self._stopped = True
        self.trouble = self.trouble or reason
