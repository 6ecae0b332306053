"""One object on its way: which command is next, and what each answer means. No I/O.

An object takes one of these ways::

    nothing there, small    copy
    nothing there, large    open > send every part > commit (> check every part)
    something there         look (> compare every part) > same, or by the policy kept, failed, sent
    then, if it is moved    remove
    nothing is written      try, where it would be copied
    begun by an earlier     open; with the upload gone, all receipts there:
      life                    look (> check every part): it was committed, only not noted

If a source lacks it, does not answer or has damaged it, the next one is looked at. Where the CRC32C
of each block is known, what was sent is good, and the rest follows; else the object is begun anew,
as the other source may have other bytes.

Whatever goes wrong while several parts are under way waits until the last of them is answered:
their receipts are still worth noting, and nothing runs into the next try.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tierstore.blocks import combine_blocks
from tierstore.transfer.engine import messages as m
from tierstore.transfer.engine.entries import Entry, Missed, Outcome
from tierstore.transfer.engine.parts import Parts
from tierstore.transfer.engine.records import Begun, Finished, Held, Receipt, Record, Version, Void
from tierstore.transfer.engine.rules import (
    ALONE,
    CHANGED,
    DAMAGED,
    FIRST,
    LOST,
    NOT_REMOVED,
    OTHER,
    RIVAL,
    STAYS,
    Beginning,
    Earlier,
    Orders,
    Phase,
)

_TRIES = 4


class OneObject:
    """One try at one object; another try is another job.

    Attributes:
        number: of this try, and of its upload in the journal.
        rank: what sorts jobs: the most urgent first, then the oldest.
        entry: the object.
        tries: which one it is.
        ours: what is there now was written by an earlier try and is to be replaced.
        records: to be noted now; whoever reads them empties them.
        moved: bytes that need not be moved any more.
        sent: those of them that this job has sent.
        outcome: once it is over, unless `again` says with which object another try begins, or it
            only frees an abandoned upload.
        reason: why it failed.
        removed: it was removed from the source.
        missed: the sources that did not give it.
        fatal: it failed as all others will.
    """

    def __init__(
        self,
        number: int,
        entry: Entry,
        rules: Orders,
        *,
        held: Held | None = None,
        earlier: Earlier = FIRST,
        state: Beginning = Beginning.NEW,
    ) -> None:
        self.number, self.entry, self.tries = number, entry, earlier.tries + 1
        self.rank = (-entry.priority, number)
        self.ours, self.missed = earlier.ours, earlier.missed
        self.records: list[Record] = []
        self.moved = self.sent = 0
        self.outcome: Outcome | None = None
        self.again: Entry | None = None
        self.reason, self.fatal, self.removed = "", False, False
        self._rules, self._held = rules, held
        self._store = store = rules.targets[entry.target]
        size = held.begun.version.size if held else entry.version.size
        self._parts = Parts(size, held.begun.part if held else store.part_size_for(size))
        self._token = held.begun.token if held else ""
        self._unnamed = held is not None and not self._token  # one may exist whose token is lost
        self._running = self._losses = 0
        self._recovering = False
        self._turned = Phase.OVER  # where to go on once there is another source
        self._whole_at_target: int | None = None
        self._drained: Callable[[], Phase] | None = None
        self._discarded: Callable[[], Phase] = lambda: Phase.OVER
        self._written = entry.version  # what is at the destination, once something is
        self._verified_as = Outcome.SAME
        match state:
            case Beginning.NEW:
                self._phase = self._first()
            case Beginning.FINISHED:
                self._phase = self._verified(Outcome.SAME) if rules.dry else Phase.REMOVE
            case Beginning.ABANDONED:
                self._phase = self._discard(lambda: Phase.OVER)

    @property
    def over(self) -> bool:
        """Whether nothing is left to do for it."""
        return self._phase is Phase.OVER

    def next(self) -> m.Task | None:
        """Return what to do now; None while answers have to come first, or when it is over."""
        if self._drained is not None or self.over:
            return None
        if self._phase in (Phase.COMPARE, Phase.SEND, Phase.CHECK):
            task = self._next_part()
        else:
            task = None if self._running else self._single()
        self._running += task is not None
        return task

    def answer(self, event: m.Answer) -> None:
        """Take the answer to one command."""
        self._running -= 1
        if isinstance(event, m.Sent):  # worth noting, however the others end
            self._note_sent(event)
        if self._drained is None:
            self._phase = self._react(event)
        if self._drained is not None and not self._running:
            then, self._drained = self._drained, None
            self._phase = then()

    def lost(self) -> None:
        """Take it that its worker is gone, with all that was under way and was open there.

        A copy, a look or a discard may have been carried out, and is asked for once more: an object
        that is there and identical counts as created.
        """
        self._running, self._losses = 0, self._losses + 1
        drained, self._drained = self._drained, None
        if drained is not None:
            self._phase = drained()
        elif self._losses > _TRIES:
            self._phase = self._end(Outcome.FAILED, ALONE)
        else:
            self._phase = self._anew(self._phase)
        if self._phase is Phase.TURN:
            self._turned = self._anew(self._turned)

    def _anew(self, phase: Phase) -> Phase:
        """Return how another worker begins a phase."""
        if phase in (Phase.SEND, Phase.COMMIT):
            return self._reopen()
        if phase in (Phase.OPEN, Phase.COPY) and self._unnamed:
            return self._discard(lambda: phase)  # what it may have begun is freed first
        if phase in (Phase.COMPARE, Phase.CHECK):
            self._parts.again()
        return phase

    # What is next

    def _first(self) -> Phase:
        there = self.entry.there
        held = self._held
        good = self._rules.trusts and not self._unnamed
        if held and not (good and held.begun.version.same(self.entry.version)):
            self.tries -= 1
            return self._discard(lambda: self._once_more(self.entry))
        if held:
            return Phase.OPEN
        if self.entry.partial:
            return Phase.TRY if self._rules.dry else Phase.UNITE
        if there is None or self.ours:
            return self._transfer()
        if there.size == self._parts.size:
            return Phase.LOOK
        return self._conflict()

    def _single(self) -> m.Task:
        number, entry = self.number, self.entry
        match self._phase:
            case Phase.TRY:
                return m.Try(number, entry)
            case Phase.LOOK | Phase.TURN:
                return m.Look(number, entry)
            case Phase.COPY:
                if not self._store.clean_copies:
                    self._note_begun("")
                return m.Copy(number, entry, self._replaces)
            case Phase.OPEN:
                if not self._token:
                    self._note_begun("")
                return m.Open(number, entry, self._token)
            case Phase.COMMIT:
                return m.Commit(number, entry, self._parts.whole(), self._replaces)
            case Phase.UNITE:
                return m.Unite(number, entry)
            case Phase.REMOVE:
                return m.Remove(number, entry, self._rules.only_links, self._rules.dry)
            case _:
                return m.Discard(number, *entry.place, self._parts.size, self._token)

    def _next_part(self) -> m.Task | None:
        sending = self._phase is Phase.SEND
        if sending and self._running and not self._store.parallel:
            return None
        index = self._parts.next()
        if index is None:
            return None
        offset, length = self._parts.range(index)
        if self._phase is Phase.COMPARE:
            both = self._whole_at_target is None
            return m.Compare(self.number, self.entry, index, offset, length, both)
        kind = m.Send if sending else m.Check
        return kind(self.number, self.entry, index, offset, length)

    # What an answer means

    def _react(self, event: m.Answer) -> Phase:
        size = self.entry.version.size
        if isinstance(event, m.Changed) and self.entry.blocks and event.version.size != size:
            reason = f"it has {event.version.size} bytes at the source and {size} in its manifest"
            event = m.Failed(self.number, reason, missed=True)
        match event:
            case m.Failed() if event.missed and (self.missed or len(self.entry.sources) > 1):
                return self._drain(lambda: self._turn(event))
            case m.Failed():
                return self._drain(lambda: self._give_up(event))
            case m.Looked() if self._phase is Phase.TURN:
                return self._go_on(self.entry.version)
            case m.Changed() if self._phase is Phase.TURN:
                return self._go_on(event.version)
            case m.Changed():
                entry = replace(self.entry, version=event.version)
                return self._drain(lambda: self._restart(entry, event.why or CHANGED))
            case m.Tried():
                return self._verified(Outcome.COPIED)
            case m.Looked():
                return self._recover(event) if self._recovering else self._look(event)
            case m.Compared():
                return self._compared(event)
            case m.Opened():
                return self._opened(event)
            case m.Gone():
                return self._gone()
            case m.Sent():
                return Phase.SEND if self._parts.left else Phase.COMMIT
            case m.Short():
                return self._short()
            case m.Copied() | m.Committed():
                return self._landed(event)
            case m.Checked():
                return self._checked(event)
            case m.United():
                return self._united(event)
            case m.Removed():
                self.removed = not (event.changed or event.kept)
                stays = Outcome.FAILED, STAYS
                return self._end(*stays) if event.changed else self._end(self._verified_as)
            case m.Conflicted():
                return self._discard(lambda: self._end(*self._beaten()))
            case _:
                self._void()
                return self._discarded()

    def _turn(self, event: m.Failed) -> Phase:
        """Turn to the next source."""
        self.missed += (Missed(self.entry.source, event.reason),)
        if len(self.entry.sources) == 1:
            reasons = "; ".join(f"{each.source}: {each.reason}" for each in self.missed)
            return self._give_up(replace(event, reason=reasons))
        self.entry = replace(self.entry, sources=self.entry.sources[1:])
        if self._phase is not Phase.TURN:
            self._turned = self._phase
        return Phase.TURN

    def _go_on(self, version: Version) -> Phase:
        """Go on with a source that has an object of that version."""
        size = self.entry.version.size
        if version.size != size:
            reason = f"it has {version.size} bytes there, not {size}"
            return self._turn(m.Failed(self.number, reason))
        self.entry = replace(self.entry, version=version)
        if self.entry.blocks or self._recovering:
            self._parts.again()
            return self._turned
        self.tries -= 1
        return self._discard(lambda: self._once_more(self.entry))

    def _give_up(self, event: m.Failed) -> Phase:
        self.fatal = event.fatal
        removing = self._phase is Phase.REMOVE
        reason = f"{NOT_REMOVED}: {event.reason}" if removing else event.reason
        deferred = event.outcome is not Outcome.BLOCKED or self._rules.conflict == "mirror"
        return self._end(event.outcome if deferred else Outcome.FAILED, reason)

    def _look(self, event: m.Looked) -> Phase:
        target = event.target
        self.entry = replace(self.entry, there=target)
        if target is None:
            return self._transfer()
        if target.size != self._parts.size:
            return self._conflict()
        self._written = target
        if not self._parts.size:
            return self._verified(Outcome.SAME)
        source_crc, blocks = event.source_crc, self.entry.blocks
        if source_crc is None and blocks:
            source_crc = combine_blocks(blocks, self._parts.size)
        if source_crc is None or event.target_crc is None:
            self._whole_at_target = event.target_crc
            return self._every_part(Phase.COMPARE)
        if source_crc == event.target_crc:
            return self._verified(Outcome.SAME)
        return self._conflict()

    def _recover(self, event: m.Looked) -> Phase:
        """Go on with an object that an earlier life may have committed."""
        target, whole = event.target, self._parts.whole()
        if (
            target is None
            or target.size != self._parts.size
            or event.target_crc not in (None, whole)
        ):
            return self._restart(replace(self.entry, there=target), LOST)
        self._written = target
        if event.target_crc is None:
            self._parts.proven.clear()  # what was read back of the upload may not be what is there
            return self._every_part(Phase.CHECK)
        return self._verified(Outcome.COPIED)

    def _compared(self, event: m.Compared) -> Phase:
        self._parts.crcs[event.index] = event.source_crc
        self._parts.done(event.index)
        whole = self._whole_at_target
        differs = event.target_crc not in (None, event.source_crc)
        if not differs and self._parts.left:
            return Phase.COMPARE
        if differs or whole not in (None, self._parts.whole()):
            return self._drain(self._conflict)
        return self._verified(Outcome.SAME)

    def _opened(self, event: m.Opened) -> Phase:
        if not event.token:
            self._void()
        elif not self._held:
            self._note_begun(event.token)
        self._token = event.token
        parts, done = self._parts, set(event.done)
        known = self._held.crcs.items() if self._held else ()
        parts.crcs = {index: crc for index, crc in known if parts.range(index) in done}
        self.moved = sum(parts.range(index)[1] for index in parts.crcs)
        parts.plan(parts.crcs)
        return Phase.SEND if parts.left else Phase.COMMIT

    def _gone(self) -> Phase:
        self._parts.crcs |= self._held.crcs if self._held else {}
        if len(self._parts.crcs) < self._parts.count:
            self._void()
            return self._restart(self.entry, LOST)
        self._recovering = True
        return Phase.LOOK

    def _short(self) -> Phase:
        """Ask the destination which parts it has left."""
        self.tries += 1
        if not self._token or self.tries > _TRIES:
            return self._end(Outcome.FAILED, LOST)
        return self._reopen()

    def _reopen(self) -> Phase:
        """Go on with the upload, or begin it again if it cannot be resumed."""
        self._parts.hold()
        if self._token:
            self._held = Held(self._begun(self._token), dict(self._parts.crcs))
        else:
            self._parts.crcs.clear()
            self.moved = 0
        return Phase.OPEN

    def _landed(self, event: m.Copied | m.Committed) -> Phase:
        self._written = event.target
        if isinstance(event, m.Copied):
            self.sent = self.moved = self._parts.size
        elif self._store.reads_back and len(self._parts.proven) < self._parts.count:
            return self._every_part(Phase.CHECK)
        return self._verified(Outcome.COPIED)

    def _united(self, event: m.United) -> Phase:
        if event.target is None:
            return self._end(Outcome.WAITING)
        self._written = event.target
        return self._verified(Outcome.COPIED)

    def _checked(self, event: m.Checked) -> Phase:
        self._parts.done(event.index)
        if event.crc != self._parts.crcs[event.index]:
            return self._drain(self._damaged)
        if self._parts.left:
            return Phase.CHECK
        return self._verified(Outcome.COPIED)

    def _damaged(self) -> Phase:
        # What is found after a crash may be somebody else's.
        self.ours = self.ours or not self._recovering
        self._void()
        return self._restart(self.entry, DAMAGED)

    # Steps

    def _transfer(self) -> Phase:
        if self._rules.dry:
            return Phase.TRY
        return Phase.COPY if self._parts.size <= self._parts.part else Phase.OPEN

    def _conflict(self) -> Phase:
        if self._rules.overwrites and not self.entry.seals:
            self._parts.crcs.clear()
            return self._transfer()
        return self._end(*self._beaten())

    def _beaten(self) -> tuple[Outcome, str]:
        if self._rules.conflict == "skip":
            return Outcome.KEPT, ""
        return Outcome.FAILED, RIVAL if self.entry.seals else OTHER

    def _every_part(self, phase: Phase) -> Phase:
        self._parts.plan(self._parts.proven if phase is Phase.CHECK else ())
        return phase

    def _begun(self, token: str) -> Begun:
        store, key = self.entry.place
        return Begun(self.number, key, self.entry.version, self._parts.part, token, store)

    def _note_begun(self, token: str) -> None:
        self.records.append(self._begun(token))
        self._unnamed = not token

    def _note_sent(self, event: m.Sent) -> None:
        parts, length = self._parts, self._parts.range(event.index)[1]
        parts.crcs[event.index] = event.crc
        parts.done(event.index)
        (parts.proven.add if event.checked else parts.proven.discard)(event.index)
        self.moved += length
        self.sent += length
        if self._token:
            self.records.append(Receipt(self.number, event.index, event.crc))

    def _verified(self, outcome: Outcome) -> Phase:
        # What is part of a checkpoint stays until its commit is gone; see `Sweep`.
        removes = self._rules.removes and not self.entry.group
        if not self._rules.dry:
            store, key = self.entry.place
            done = Finished(self.number, key, self.entry.version, self._written, store)
            self.records.append(done)
        self._verified_as = outcome
        return Phase.REMOVE if removes else self._end(outcome)

    def _drain(self, then: Callable[[], Phase]) -> Phase:
        """Begin nothing more, and go on with `then` once all that is under way is answered."""
        self._parts.hold()
        self._drained = then
        return self._phase

    def _restart(self, entry: Entry, why: str) -> Phase:
        if self.tries >= _TRIES:
            return self._discard(lambda: self._end(Outcome.FAILED, why))
        return self._discard(lambda: self._once_more(entry))

    def _discard(self, then: Callable[[], Phase]) -> Phase:
        if not (self._token or self._unnamed):
            return then()
        self._discarded = then
        return Phase.DISCARD

    def _void(self) -> None:
        if self._token or self._unnamed:
            self.records.append(Void(self.number))
        self._token, self._unnamed = "", False

    def _once_more(self, entry: Entry) -> Phase:
        self.again = entry
        return Phase.OVER

    def _end(self, outcome: Outcome, reason: str = "") -> Phase:
        self.outcome, self.reason = outcome, reason
        return Phase.OVER

    @property
    def _replaces(self) -> bool:
        return self.ours or (self._rules.overwrites and not self.entry.seals)
