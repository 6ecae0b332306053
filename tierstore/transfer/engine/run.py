"""The engine at work: the machine, its feed, its journal, and the crew that does what it says."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from tierstore.backend import Capabilities
from tierstore.checkpoint.delete import grace_for_readers
from tierstore.errors import TierstoreError
from tierstore.logs import logger
from tierstore.transfer.engine import messages as m
from tierstore.transfer.engine.affinity import Affinity
from tierstore.transfer.engine.crew import Crew, Threads, heavy_of
from tierstore.transfer.engine.feed import Feed
from tierstore.transfer.engine.journal import Journal
from tierstore.transfer.engine.machine import Machine, Totals
from tierstore.transfer.engine.rules import Conflict, Destination, Orders, Removes
from tierstore.transfer.engine.stores import Stores
from tierstore.transfer.part import reads_back

_log = logger(__name__)

GRACE = 0.75
"""Seconds that parts under way are waited for when the engine is stopped."""
_TICK = 0.1
_AT_ONCE = 64  # events between two looks at the clock
_TOGETHER = 0.001  # seconds: answers of small commands are taken several at once


class Engine:
    """Moves what it is fed with between stores; see `run`.

    Args:
        stores: that entries name.
        journal: of these stores, open; of a dry run, which writes nothing, if that one is.
        feed: what is to be moved; asked by another thread, and closed at the end.
        conflict: what to do where the destination has something else.
        removes: whether what is verified at the destination is removed from the source, or what
            of it are links, which others may lead through.
        grace: seconds that readers of a checkpoint have before its data is removed.
        report: told how each object ended, from the thread that calls `run`.
        tick: called now and then by that thread.
    """

    def __init__(
        self,
        stores: Stores,
        journal: Journal,
        feed: Feed,
        *,
        conflict: Conflict = "fail",
        removes: Removes = False,
        grace: float = 0.0,
        report: Callable[[m.Report], None] = lambda _report: None,
        tick: Callable[[Totals], None] = lambda _totals: None,
    ) -> None:
        rules = Orders(
            {name: _destination(stores[name].capabilities) for name in stores.targets},
            conflict=conflict,
            removes=bool(removes),
            only_links=removes == "links",
            heavy=heavy_of(stores),
            window=feed.ahead,
            dry=journal.dry,
            trusts=journal.trusted,
            goes_on=feed.goes_on,
        )
        self._journal, self._report, self._tick = journal, report, tick
        self._machine = Machine(rules, journal.past())
        self._feed = feed
        self._stores, self._grace, self._waits_until = stores, grace, float("inf")
        self._readers = ExitStack()  # open while they are waited for
        self._affinity = Affinity()
        self._events: queue.SimpleQueue[m.Event] = queue.SimpleQueue()
        self._asked: queue.SimpleQueue[m.More | None] = queue.SimpleQueue()
        # A daemon: whoever stops does not wait for a store that does not answer.
        self._feeder = threading.Thread(target=self._eat, name="tierstore-engine-feed", daemon=True)

    @property
    def totals(self) -> Totals:
        """How far it is."""
        return self._machine.totals

    @property
    def trouble(self) -> str:
        """Why it ended before its end; empty if it did not, or was stopped."""
        return self._machine.trouble

    @property
    def complete(self) -> bool:
        """Whether everything was looked at."""
        return self._machine.over and not self._machine.stopped

    def stop(self) -> None:
        """Begin nothing more. May be called from a signal handler."""
        self._events.put(m.Stop())

    def run(self, crew: Crew | None = None) -> Totals:
        """Return when the feed has ended and all of it is over, or soon after it was stopped.

        Args:
            crew: who does it, closed at the end; threads of this process if None.

        Raises:
            StorageError: the journal cannot be written.
        """
        self._crew = crew or Threads(self._stores, self._affinity)
        self._feeder.start()
        try:
            self._crew.start(self._events.put)
            self._perform(self._machine.begin())
            deadline = float("inf")
            while not self._machine.over and time.monotonic() < deadline:
                self._step()
                if self._machine.stopped and deadline == float("inf"):
                    deadline = time.monotonic() + GRACE
        finally:
            self._readers.close()
            self._affinity.leave()
            self._feed.close()
            self._asked.put(None)
            # Otherwise some wait for a store.
            patience = GRACE if self._machine.over else 0.0
            self._crew.close(patience=patience)
        self._feeder.join(patience)
        self._tick(self.totals)
        return self.totals

    def _step(self) -> None:
        self._affinity.join()
        try:
            event = self._events.get(timeout=_TICK)
        except queue.Empty:
            pass
        else:
            commands = self._machine.handle(event)
            for _ in range(_AT_ONCE):
                if self._events.empty():
                    break
                event = self._events.get()
                if isinstance(event, m.Left):  # what it was to do goes to others now
                    self._perform(commands)
                    commands = []
                commands += self._machine.handle(event)
            self._perform(commands)
            if self._events.empty():
                time.sleep(_TOGETHER)
        if time.monotonic() >= self._waits_until:
            self._waits_until = float("inf")
            self._readers.close()
            self._perform(self._machine.handle(m.Waited()))
        self._tick(self.totals)

    def _perform(self, commands: list[m.Command]) -> None:
        # All notes in one transaction, before anything is carried out that relies on one of them.
        self._journal.append(*(each.record for each in commands if isinstance(each, m.Note)))
        for command in commands:
            match command:
                case m.Note():
                    pass
                case m.Report():
                    for missed in command.missed:
                        _log.warning(
                            "%s could not be read from %s: %s",
                            command.key,
                            self._stores[missed.source].url,
                            missed.reason,
                        )
                    self._report(command)
                case m.More():
                    self._asked.put(command)
                case m.Wait():
                    self._waits_until = time.monotonic() + self._grace
                    self._readers.enter_context(grace_for_readers(self._grace))
                case _:
                    self._crew.submit(self._machine.worker(command.job), command)

    def _eat(self) -> None:
        while self._asked.get() is not None:
            self._affinity.join()
            try:
                self._events.put(self._feed.next())
            except TierstoreError as error:
                self._events.put(m.Broken(f"cannot list: {error}"))
            except Exception as error:
                _log.exception("the feed failed")
                self._events.put(m.Broken(f"{type(error).__name__}: {error}"))


def _destination(store: Capabilities) -> Destination:
    return Destination(
        store.part_size_for,
        reads_back=reads_back(store, verify=True),
        clean_copies=store.clean_create,
        parallel=store.parallel_parts,
    )
