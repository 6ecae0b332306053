"""How moves went."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tierstore.errors import TierstoreError
from tierstore.migration.mirror import Extra
from tierstore.transfer.engine.entries import Outcome
from tierstore.transfer.engine.machine import Totals
from tierstore.transfer.engine.messages import Report

if TYPE_CHECKING:
    from tierstore.transfer.engine.crew import Effort

__all__ = [
    "Extra",
    "MigrationResult",
    "Moved",
    "Outcome",
    "Report",
    "SyncResult",
    "Totals",
]


@dataclass(frozen=True, slots=True)
class Moved:
    """How a pass went.

    Attributes:
        totals: objects and bytes, by how they ended; of a dry run, how they would end.
        seconds: it took.
        cpu_seconds: it took, of all workers.
        retries: requests that were repeated.
        effort: of workers outside this process; None without any.
        complete: everything was looked at.
        stopped: somebody stopped it.
        trouble: why it ended before its end; empty if it did not, or was stopped.
        failed: objects that could not be moved.
        left_out: things that are no objects, and that nobody asked to leave out.
        blocked: the keys in whose place the destination has something else.
        failures: how up to 100 objects failed.
        journal: what a later call goes on from.
        dry_run: nothing was done.
        read_seconds: how long reading what would be copied takes from here; None if unknown, or
            not a dry run.
    """

    totals: Totals
    seconds: float
    cpu_seconds: float
    retries: int
    effort: Effort | None
    complete: bool
    stopped: bool
    trouble: str
    failed: int
    left_out: int
    blocked: frozenset[str] = field(repr=False)
    failures: tuple[Report, ...]
    journal: Path
    dry_run: bool
    read_seconds: float | None

    @property
    def remaining(self) -> int:
        """Objects that the source still has."""
        return self.totals.found - self.totals.removed - self.totals.settled[Outcome.LEFT_OUT]

    @property
    def coming(self) -> int:
        """Objects that a real run would have brought where nothing is."""
        return self.totals.created if self.dry_run else 0

    @property
    def good(self) -> bool:
        """Whether it went to its end, and nothing failed."""
        return not (self.failed or self.trouble or self.stopped)


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """How a move went.

    Attributes:
        source: what was moved, without what only says how it is read.
        target: where to.
        passes: a second one is made where one thing has to go before another can.
    """

    source: str
    target: str
    passes: tuple[Moved, ...]

    @property
    def last(self) -> Moved:
        """The last pass, which says whether all has arrived."""
        return self.passes[-1]

    @property
    def good(self) -> bool:
        """Whether everything was looked at, and nothing failed."""
        return self.last.good

    def check(self) -> None:
        """Raise if not all has arrived.

        Raises:
            TierstoreError: something failed, or it did not go to its end, and why.
        """
        last, goes_on = self.last, "repeat the call to resume"
        if last.trouble:
            raise TierstoreError(f"it stopped before its end: {last.trouble}", hint=goes_on)
        if last.stopped:
            raise TierstoreError(f"moving {self.source} was stopped", hint=goes_on)
        if last.failures:
            first = last.failures[0]
            raise TierstoreError(
                f"{last.failed} of {last.totals.found} objects of {self.source} were not moved; "
                f"the first is {first.key}: {first.reason}",
                hint="the same call tries again what failed",
            )

    @property
    def copied(self) -> int:
        """Objects that were copied, or would be."""
        return sum(one.totals.settled[Outcome.COPIED] for one in self.passes)

    @property
    def same(self) -> int:
        """Objects that were there already."""
        return self.last.totals.settled[Outcome.SAME]

    @property
    def failed(self) -> int:
        """Objects that could not be moved; `last.failures` says why."""
        return self.last.failed

    @property
    def sent_bytes(self) -> int:
        """Bytes that were sent."""
        return sum(one.totals.sent for one in self.passes)


@dataclass(frozen=True, slots=True)
class SyncResult(MigrationResult):
    """How a mirror was made.

    Attributes:
        extra: what the mirror had too much; None if nobody asked to delete it, or not all arrived.
        deleted: objects of it that were deleted.
    """

    extra: Extra | None = None
    deleted: int = 0
