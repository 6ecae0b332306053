"""Launches, and which commits lie on the line that leads to the newest of them. No I/O.

After a rollback from step 200 to step 50, the commits of the abandoned launch above 50 are on no
timeline of the new launch, however high their steps. A launch counts from its first commit on: one
that claimed a number and saved nothing hides nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tierstore.blocks import Buffer
from tierstore.checkpoint.commit import FORMAT, Commit, check_parent, check_started, seal, unseal
from tierstore.errors import FormatError, InvalidKeyError
from tierstore.keys import Attempt, AttemptId, LaunchId, RunKeys


@dataclass(frozen=True, slots=True)
class Launch:
    """One uninterrupted life of a job. Every commit of it says the same; so does its claim.

    Attributes:
        number: from 1, claimed by creating the record.
        nonce: 16 hexadecimal digits, in the names of the launch's files.
        parent: the attempt that it restored, with the nonce of that one's launch; None if it
            began anew.
        world_size: ranks in the job.
        started: when it began, seconds since 1970; later than every launch that it saw, whatever
            the clock says (`started_after`).
        format: of the record; one of format 1 has a clock's time that orders nothing.
    """

    number: int
    nonce: str
    parent: AttemptId | None
    world_size: int
    started: float
    format: int = FORMAT

    def __post_init__(self) -> None:
        RunKeys("run").attempt(Attempt(0, self.number, 0), self.nonce)
        if self.number < 1:
            raise InvalidKeyError(f"launch {self.number} is not 1 or more")
        if self.parent is not None and not 0 < self.parent.attempt.launch < self.number:
            raise InvalidKeyError(
                f"launch {self.number} cannot go on from {self.parent.attempt.launch}"
            )

    @property
    def id(self) -> LaunchId:
        """What tells it from every other launch."""
        return LaunchId(self.number, self.nonce)

    @classmethod
    def of(cls, commit: Commit) -> Launch | None:
        """Return the launch of a commit; None if the commit, of format 1, does not describe it."""
        if commit.format == 1:
            return None
        number = commit.attempt.launch
        return cls(number, commit.nonce, commit.parent, commit.world_size, commit.started)

    def to_bytes(self) -> bytes:
        """Return its claim as it is stored: canonical JSON with its CRC32C."""
        return seal(
            {
                "format": FORMAT,
                "launch": self.number,
                "nonce": self.nonce,
                "parent": self.parent and str(self.parent),
                "started": self.started,
                "world_size": self.world_size,
            }
        )

    @classmethod
    def from_bytes(cls, data: Buffer, name: str = "a launch record") -> Launch:
        """Parse a stored claim.

        Raises:
            NewerFormatError: a newer tierstore wrote it.
            FormatError: it is damaged or something else.
        """
        record = unseal(data, name)
        try:
            return cls(
                number=int(record["launch"]),
                nonce=str(record["nonce"]),
                parent=check_parent(record["parent"], int(record["launch"])),
                world_size=int(record["world_size"]),
                started=check_started(record["started"]),
                format=int(record["format"]),
            )
        except (
            InvalidKeyError, KeyError, TypeError, ValueError, IndexError, OverflowError,
        ) as error:  # fmt: skip
            raise FormatError(f"{name} is not a launch record: {error!r}") from error


def timeline(launches: Mapping[LaunchId, Launch], saved: Iterable[AttemptId]) -> list[AttemptId]:
    """Return the attempts that lead to the newest launch, newest first.

    These are that launch's own, then its parent's up to the attempt that was restored, then the
    grandparent's up to what either restored, and so on. The newest launch is the one that began
    last of those that have commits.

    Args:
        launches: what is known of launches. One that has commits and is not among them counts as
            newer than those of lower numbers, without parent: the line ends with it.
        saved: the living commits, in any order.
    """
    by_launch: dict[LaunchId, list[AttemptId]] = defaultdict(list)
    for each in saved:
        by_launch[each.launch].append(each)
    age = _ages(launches, by_launch)
    here = max(by_launch, key=age.__getitem__, default=None)
    limit: Attempt | None = None
    line: list[AttemptId] = []
    while here is not None:
        own = sorted(by_launch.get(here, ()), reverse=True)
        line += [each for each in own if limit is None or each.attempt <= limit]
        launch = launches.get(here)
        if launch is None or launch.parent is None:
            break
        parent = launch.parent  # of a lower number, so the line has no cycle
        limit = parent.attempt if limit is None else min(limit, parent.attempt)
        here = parent.launch if parent.nonce else _of_number(parent.launch.number, age)
    return line


def _of_number(number: int, age: Mapping[LaunchId, tuple[float, LaunchId]]) -> LaunchId | None:
    """The newest launch of a number: a record of format 1 says no more of its parent."""
    return max((this for this in age if this.number == number), key=age.__getitem__, default=None)


def _ages(
    launches: Mapping[LaunchId, Launch], others: Iterable[LaunchId]
) -> dict[LaunchId, tuple[float, LaunchId]]:
    """Return what orders launches.

    Those of format 1 are in the order of their numbers, whatever their clocks said, and so is one
    of which nothing is known.
    """
    ages: dict[LaunchId, tuple[float, LaunchId]] = {}
    oldest = latest = 0.0
    for this in sorted({*launches, *others}):
        launch = launches.get(this)
        if launch is None:
            began = latest
        elif launch.format == 1:
            began = oldest = max(oldest, launch.started)
        else:
            began = launch.started
        latest = max(latest, began)
        ages[this] = began, this
    return ages


def started_after(began: Iterable[float], now: float) -> float:
    """Return when a launch began that has seen others: now, or after them if clocks disagree.

    Args:
        began: when the others did.
        now: the clock's time.
    """
    return max([now, *(math.nextafter(each, math.inf) for each in began)])


def next_launch(numbers: Iterable[int]) -> int:
    """Return the lowest number above every launch that left a trace."""
    return max(numbers, default=0) + 1


def next_try(attempts: Iterable[Attempt], step: int, launch: int) -> Attempt:
    """Return the attempt after every one seen of this step and launch, dead or alive."""
    seen = [a.number for a in attempts if (a.step, a.launch) == (step, launch)]
    return Attempt(step, launch, max(seen, default=0) + 1)
