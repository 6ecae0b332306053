"""Launches, and which commits lie on the line that leads to the newest of them. No I/O.

After a rollback from step 200 to step 50, the commits of the abandoned launch above 50 are on no
timeline of the new launch, however high their steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tierstore.blocks import Buffer
from tierstore.checkpoint.commit import FORMAT, seal, unseal
from tierstore.errors import FormatError, InvalidKeyError
from tierstore.keys import Attempt, RunKeys


@dataclass(frozen=True, slots=True)
class Launch:
    """One uninterrupted life of a job. Its record never changes.

    Attributes:
        number: from 1, claimed by creating the record.
        nonce: 16 hexadecimal digits, in the names of the launch's files.
        parent: the launch it goes on from and the attempt it restored; None if it began anew.
        world_size: ranks in the job.
        started: seconds since 1970, for people; nothing is decided by it.
    """

    number: int
    nonce: str
    parent: tuple[int, Attempt] | None
    world_size: int
    started: float

    def __post_init__(self) -> None:
        RunKeys("run").attempt(Attempt(0, self.number, 0), self.nonce)
        if self.number < 1:
            raise InvalidKeyError(f"launch {self.number} is not 1 or more")
        if self.parent is not None and not 0 < self.parent[0] < self.number:
            raise InvalidKeyError(f"launch {self.number} cannot go on from {self.parent[0]}")

    def to_bytes(self) -> bytes:
        """Return the launch as it is stored: canonical JSON with its CRC32C."""
        parent = self.parent and [self.parent[0], str(self.parent[1])]
        return seal(
            {
                "format": FORMAT,
                "launch": self.number,
                "nonce": self.nonce,
                "parent": parent,
                "started": self.started,
                "world_size": self.world_size,
            }
        )

    @classmethod
    def from_bytes(cls, data: Buffer, name: str = "a launch record") -> Launch:
        """Parse a stored launch.

        Raises:
            NewerFormatError: a newer tierstore wrote it.
            FormatError: it is damaged or something else.
        """
        record = unseal(data, name)
        try:
            parent = record["parent"] and (
                int(record["parent"][0]),
                Attempt.parse(record["parent"][1]),
            )
            return cls(
                number=int(record["launch"]),
                nonce=str(record["nonce"]),
                parent=parent,
                world_size=int(record["world_size"]),
                started=float(record["started"]),
            )
        except (InvalidKeyError, KeyError, TypeError, ValueError, IndexError) as error:
            raise FormatError(f"{name} is not a launch record: {error!r}") from error


def timeline(launches: Mapping[int, Launch], attempts: Iterable[Attempt]) -> list[Attempt]:
    """Return the attempts that lead to the newest launch, newest first.

    These are the highest launch's own, then its parent's up to the attempt that was restored, then
    the grandparent's up to what either restored, and so on.

    Args:
        launches: the known launches by number. One that has attempts and no record counts as a
            launch without parent: the line ends with it.
        attempts: the living commits, in any order.
    """
    by_launch: dict[int, list[Attempt]] = {}
    for attempt in attempts:
        by_launch.setdefault(attempt.launch, []).append(attempt)
    number = max([*launches, *by_launch], default=0)
    limit: Attempt | None = None
    line: list[Attempt] = []
    while number:
        own = sorted(by_launch.get(number, ()), reverse=True)
        line += [attempt for attempt in own if limit is None or attempt <= limit]
        launch = launches.get(number)
        # A parent is a lower number, or the line ends: it has no cycle.
        if launch is None or launch.parent is None or launch.parent[0] >= number:
            break
        number, restored = launch.parent
        limit = restored if limit is None else min(limit, restored)
    return line


def next_launch(launches: Iterable[int], attempts: Iterable[Attempt]) -> int:
    """Return the lowest number above every launch seen, by record or by commit, dead or alive."""
    return max([0, *launches, *(attempt.launch for attempt in attempts)]) + 1


def next_try(attempts: Iterable[Attempt], step: int, launch: int) -> Attempt:
    """Return the attempt after every one seen of this step and launch, dead or alive."""
    seen = [a.number for a in attempts if (a.step, a.launch) == (step, launch)]
    return Attempt(step, launch, max(seen, default=0) + 1)
