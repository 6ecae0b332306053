"""What a move is told: how it is done, by whom, and who hears how far it is."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tierstore.checkpoint import GRACE
from tierstore.errors import ConfigError
from tierstore.operations.ends import Access

if TYPE_CHECKING:
    from tierstore.operations.moved import Moved, Report, Totals
    from tierstore.operations.tiers import Source

__all__ = ["GRACE", "MoveProgress", "OnConflict", "Terms", "Workers", "heard_by"]

OnConflict = Literal["skip", "fail", "overwrite"]
"""What becomes of an object where the destination has something else already."""


class MoveProgress:
    """Hears how far it is. Each method may be overridden; these do nothing.

    A move has one pass, or two where one thing has to go before another can.
    """

    def running(self, stop: Callable[[], None]) -> AbstractContextManager[object]:
        """Return what is open during a pass.

        Args:
            stop: begins nothing more, and so ends it soon; may be called from any thread, and from
                a signal handler. Another call goes on from there.
        """
        del stop
        return nullcontext()

    def tick(self, totals: Totals) -> None:
        """Hear now and then how far the pass is."""

    def report(self, report: Report) -> None:
        """Hear how an object ended."""

    def over(self, done: Moved) -> None:
        """Hear how the pass ended."""

    def removed(self, keys: Sequence[str]) -> None:
        """Hear what was removed from a mirror."""


class _Ticking(MoveProgress):
    def __init__(self, tick: Callable[[Totals], None]) -> None:
        self._tick = tick

    def tick(self, totals: Totals) -> None:
        self._tick(totals)


def heard_by(progress: MoveProgress | Callable[[Totals], None] | None) -> MoveProgress:
    """Return who hears how far it is; a plain function hears the totals."""
    if isinstance(progress, MoveProgress):
        return progress
    return MoveProgress() if progress is None else _Ticking(progress)


@dataclass(frozen=True, slots=True)
class Workers:
    """Machines that do the work.

    Attributes:
        on: what finds them: "ray". A folder has to be on each.
        address: of the cluster, HOST:PORT; the one that runs on this machine if empty.
        send_credentials: they use this machine's AWS_* and HADOOP_* variables, not their own.
    """

    on: str
    address: str = ""
    send_credentials: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How objects are moved; the keywords of `move.MigrateOptions`."""

    dry_run: bool = False
    journal: str | os.PathLike[str] | None = None
    checksum: bool = False
    bandwidth: int | None = None
    requests: int | None = None
    config: Source | None = None
    progress: MoveProgress | Callable[[Totals], None] | None = None
    follow_links: bool = True
    workers: Workers | None = None
    delete_source: bool = False
    grace: float = GRACE

    def __post_init__(self) -> None:
        if not (math.isfinite(self.grace) and self.grace >= 0):
            raise ConfigError(f"grace is {self.grace}, not a number of seconds")

    @property
    def access(self) -> Access:
        """How hard the ends may be used."""
        return Access(self.bandwidth, self.requests, self.config, hasty=self.dry_run)
