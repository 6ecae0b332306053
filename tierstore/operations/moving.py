"""One pass of moving what was found from one end to the other."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from tierstore.errors import InvalidKeyError, TierstoreError
from tierstore.operations.moved import Moved, Outcome, Report
from tierstore.operations.terms import heard_by
from tierstore.waiting import on

if TYPE_CHECKING:
    from tierstore.migration.ends import Ends
    from tierstore.migration.forecast import ReadForecast
    from tierstore.operations.ends import Between
    from tierstore.operations.terms import Terms
    from tierstore.transfer.engine.crew import Crew
    from tierstore.transfer.engine.entries import Item
    from tierstore.transfer.engine.journal import Journal
    from tierstore.transfer.engine.rules import Conflict, Removes
    from tierstore.transfer.engine.run import Engine


_CREDENTIALS = ("AWS_", "HADOOP_")
_LISTED = 100  # failed objects that a result names


class Pass:
    """One pass between two ends; see `run`.

    Args:
        between: the ends.
        terms: how.
        conflict: what to do where the destination has something else.
        removes: what is removed from the source once it is verified at the destination.

    Attributes:
        links_failed: a link failed, or what may hold some: what they lead to is needed still.
    """

    def __init__(
        self, between: Between, terms: Terms, conflict: Conflict, removes: Removes = False
    ) -> None:
        self._between, self._terms, self._conflict = between, terms, conflict
        self._removes: Removes = removes
        self._progress = heard_by(terms.progress)
        self._ends: Ends = between.ends
        self._failures: list[Report] = []
        self._failed = self._left_out = 0
        self._blocked: set[str] = set()
        self._stopped = self.links_failed = False
        self._forecast: ReadForecast | None = None

    def run(self, found: Iterable[Item]) -> Moved:
        """Move what was found, or find out what would be done.

        Raises:
            TierstoreError: there is nothing to move.
            ConfigError: there are no such workers.
            StorageError: the journal cannot be written.
        """
        from tierstore.migration.forecast import ReadForecast
        from tierstore.transfer.engine.journal import Journal

        terms, between = self._terms, self._between
        crew = _crew(between, terms)
        path = Path(terms.journal) if terms.journal else _default_journal(between)
        self._forecast = ReadForecast(self._ends.source) if terms.dry_run else None
        with ExitStack() as opened:
            if crew is not None:
                opened.enter_context(closing(crew))
            notes = Journal(
                path,
                between.source,
                between.target,
                trusted=not terms.checksum,
                dry=terms.dry_run,
            )
            opened.enter_context(closing(notes))
            begun, used = time.monotonic(), time.process_time()
            engine = self._engine(notes, found)
            with self._progress.running(lambda: self._stop(engine)):
                engine.run(crew)
                whole = self._forecast if engine.complete else None
                read = whole.seconds() if whole else None
        spent = time.monotonic() - begun, time.process_time() - used
        done = self._moved(engine, crew, path, spent, read)
        self._progress.over(done)
        self._check_any(done)
        return done

    def _engine(self, notes: Journal, found: Iterable[Item]) -> Engine:
        from tierstore.transfer.engine.feed import Listing
        from tierstore.transfer.engine.run import Engine

        return Engine(
            self._ends.stores,
            notes,
            Listing(found),
            conflict=self._conflict,
            removes=self._removes,
            grace=self._terms.grace,
            report=self._report,
            tick=self._progress.tick,
        )

    def _stop(self, engine: Engine) -> None:
        self._stopped = True
        engine.stop()

    def _report(self, report: Report) -> None:
        outcome = report.outcome
        if self._forecast is not None and outcome is Outcome.COPIED:
            self._forecast.add(report.key, report.size)
        if outcome is Outcome.FAILED:
            self._failed += 1
            if len(self._failures) < _LISTED:
                self._failures.append(report)
            self.links_failed = self.links_failed or self._leads(report.key)
        self._left_out += outcome is Outcome.LEFT_OUT and not report.asked
        if outcome is Outcome.BLOCKED:
            self._blocked.add(report.key)
        self._progress.report(report)

    def _leads(self, key: str) -> bool:
        from tierstore.transfer.engine.removal import is_link

        try:
            return key.endswith("/") or is_link(self._ends.source, key)
        except InvalidKeyError:  # a name that only stands for it
            return True

    def _moved(
        self,
        engine: Engine,
        crew: Crew | None,
        journal: Path,
        spent: tuple[float, float],
        read_seconds: float | None,
    ) -> Moved:
        effort = crew.effort if crew else None
        return Moved(
            totals=engine.totals,
            seconds=spent[0],
            cpu_seconds=spent[1] + (effort.cpu_seconds if effort else 0.0),
            retries=self._ends.stores.retries + (effort.retries if effort else 0),
            effort=effort,
            complete=engine.complete,
            stopped=self._stopped,
            trouble=engine.trouble,
            failed=self._failed,
            left_out=self._left_out,
            blocked=frozenset(self._blocked),
            failures=tuple(self._failures),
            journal=journal,
            dry_run=self._terms.dry_run,
            read_seconds=read_seconds,
        )

    def _check_any(self, done: Moved) -> None:
        settled = done.totals.settled.items()
        nothing = done.totals.found == sum(n for outcome, n in settled if outcome.is_nothing)
        if nothing and not (done.trouble or done.stopped):
            raise TierstoreError(
                f"there is nothing to migrate at {self._between.source}",
                hint="a pattern for a folder and all that is below it ends in '/'",
            )


def _crew(between: Between, terms: Terms) -> Crew | None:
    """Return who does the work; None for threads of this process, as in a dry run.

    Raises:
        ConfigError: there is no such cluster, or its package is missing.
    """
    from tierstore.transfer.engine.crew import CrewSite, find_crew, open_crew

    workers = terms.workers
    if workers is None:
        return None
    if terms.dry_run:
        find_crew(workers.on)
        return None
    sends = workers.send_credentials
    sent = {k: v for k, v in os.environ.items() if sends and k.startswith(_CREDENTIALS)}
    with on(f"{workers.on} {workers.address or 'here'}", "a cluster to work on"):
        cluster = CrewSite(workers.address, sent)
        return open_crew(workers.on, between.recipe, between.ends.stores, cluster)


def _default_journal(between: Between) -> Path:
    """Return the journal of this pair of places: the same move finds it again."""
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    names = f"{between.source}\n{between.target}"
    name = hashlib.sha256(names.encode()).hexdigest()[:16]
    return Path(home).expanduser() / "tierstore" / "migrate" / f"{name}.journal"
