"""How far one save is, tier by tier, and how to wait for it."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from tierstore.errors import CheckpointError, DeadlineError
from tierstore.keys import Attempt
from tierstore.wrappers.stop import LOOK


class State(StrEnum):
    """Where a save is on one tier.

    PENDING waits for its turn; WRITING sends this rank's files; WRITTEN has this rank's files and
    fragment there; COMMITTED means that all ranks have, and that the commit exists; FAILED carries
    an error; BEHIND does too: the tier had too many saves to write already. SKIPPED was not meant
    for this tier. What failed or was behind may still become COMMITTED: the tier catches up.
    """

    PENDING = "pending"
    WRITING = "writing"
    WRITTEN = "written"
    COMMITTED = "committed"
    FAILED = "failed"
    BEHIND = "behind"
    SKIPPED = "skipped"


_SETTLED = frozenset({State.COMMITTED, State.FAILED, State.BEHIND, State.SKIPPED})
_WRITTEN = _SETTLED | {State.WRITTEN}


@dataclass(frozen=True, slots=True)
class TierStatus:
    """A save on one tier.

    Attributes:
        state: where it is.
        seconds: from the start of writing until this rank's part was written, or until now.
        commit_seconds: from then until the commit was seen.
        nbytes: of this rank's files sent so far.
        error: why it failed, or that the tier was too far behind.
    """

    state: State = State.PENDING
    seconds: float = 0.0
    commit_seconds: float = 0.0
    nbytes: int = 0
    error: BaseException | None = None

    @property
    def gb_per_s(self) -> float:
        """10**9 bytes per second of writing."""
        return self.nbytes / 1e9 / self.seconds if self.seconds else 0.0


class SaveHandle:
    """One save on its way down the ladder. A failure on a tier is raised to who waits for it."""

    def __init__(self, attempt: Attempt, tiers: Iterable[str], chosen: Collection[str]) -> None:
        self.attempt = attempt
        self._tiers = {
            name: TierStatus(State.PENDING if name in chosen else State.SKIPPED) for name in tiers
        }
        self._since: dict[str, float] = {}
        self._pid = os.getpid()
        self._changed = threading.Condition()

    def __repr__(self) -> str:
        states = ", ".join(f"{name}: {status.state}" for name, status in self.status().items())
        return f"<SaveHandle {self.attempt} {states}>"

    def status(self) -> dict[str, TierStatus]:
        """Return every tier's status, in the order of the ladder."""
        with self._changed:
            return {name: self._timed(name) for name in self._tiers}

    @property
    def done(self) -> bool:
        """Whether every tier is committed, failed, behind or skipped."""
        return self._reached(self._tiers, _SETTLED)

    @property
    def failed(self) -> dict[str, BaseException]:
        """The errors of the tiers that failed or were too far behind, until they catch up."""
        found = ((name, status.error) for name, status in self.status().items())
        return {name: error for name, error in found if error is not None}

    def wait(
        self,
        tier: str | None = None,
        timeout: float | None = None,
        *,
        until: Literal["written", "committed"] = "committed",
    ) -> None:
        """Wait for one tier, or for all that this save goes to.

        Args:
            tier: the tier's name, or None for all.
            timeout: seconds; None for as long as the tiers' own deadlines allow.
            until: "committed": the checkpoint exists there, whole. "written": this rank's part is
                there.

        Raises:
            CheckpointError: the save does not go to this tier, or there is none of this name; or
                this is a forked child, where nothing tells how far its parent's save is.
            DeadlineError: `timeout` passed; the save goes on.
            Exception: whatever the save failed with on the tier (the first one that failed), or
                that the tier was too far behind. It is not waited for until that tier catches up.
        """
        if os.getpid() != self._pid:
            raise CheckpointError(
                f"step {self.attempt.step} is saved by process {self._pid}, which has forked this "
                "one: only there it can be waited for",
                hint="wait before the fork, or look with `tierstore ls`",
            )
        names = list(self._tiers) if tier is None else [tier]
        if tier is not None and (tier not in self._tiers or not self.goes_to(tier)):
            goes = [name for name in self._tiers if self.goes_to(name)]
            raise CheckpointError(f"step {self.attempt.step} goes to {goes}, not to tier {tier!r}")
        states = _SETTLED if until == "committed" else _WRITTEN
        with self._changed:
            if not self._changed.wait_for(lambda: self._reached(names, states), timeout):
                late = [n for n in names if self._tiers[n].state not in states]
                raise DeadlineError(
                    f"step {self.attempt.step} is not {until} on {late} after {timeout} s",
                    hint="the save goes on; wait again, or look at status()",
                )
            errors = [self._tiers[name].error for name in names]
        for error in errors:
            if error is not None:
                raise error

    def wait_anywhere(self, timeout: float) -> bool:
        """Wait until some tier has committed, or none is at it; return whether one has."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._committed() or self._reached(self._tiers, _SETTLED), timeout
            )
            return self._committed()

    def goes_to(self, tier: str) -> bool:
        """Whether the save was meant for this tier."""
        return self._tiers[tier].state != State.SKIPPED

    def settled(self, tier: str) -> bool:
        """Whether nothing more will happen on a tier, unless it catches up."""
        return self._reached([tier], _SETTLED)

    def wait_turn(self, tier: str, enough: Callable[[float], bool]) -> None:
        """Wait until no tier above `tier` has writing to do, or `enough` seconds have passed.

        `enough` is asked again and again, as less may be enough by then; `wake` has it asked.
        """
        names = list(self._tiers)
        above = names[: names.index(tier)]
        begun = time.monotonic()
        with self._changed:
            while not (self._reached(above, _WRITTEN) or enough(time.monotonic() - begun)):
                self._changed.wait(LOOK)

    def wake(self) -> None:
        """Have whoever waits for a turn look whether it is to stop."""
        with self._changed:
            self._changed.notify_all()

    def written_everywhere(self) -> bool:
        """Whether no tier needs this rank's bytes any more."""
        return self._reached(self._tiers, _WRITTEN)

    def advance(self, tier: str, state: State, error: BaseException | None = None) -> None:
        """Record a new state of a tier and wake who waits. Only the engine calls this."""
        if error is not None:
            _forget_locals(error)
        with self._changed:
            status = self._timed(tier)
            self._since[tier] = time.monotonic()
            self._tiers[tier] = replace(status, state=state, error=error)
            self._changed.notify_all()

    def catch_up(self, tier: str, *, seconds: float, nbytes: int) -> None:
        """Record that a tier which failed or was behind has the whole checkpoint now."""
        with self._changed:
            self._tiers[tier] = TierStatus(State.COMMITTED, seconds, nbytes=nbytes)
            self._changed.notify_all()

    def count(self, tier: str, nbytes: int) -> None:
        """Add bytes that were sent to a tier."""
        with self._changed:
            status = self._tiers[tier]
            self._tiers[tier] = replace(status, nbytes=status.nbytes + nbytes)

    def _committed(self) -> bool:
        return any(status.state == State.COMMITTED for status in self._tiers.values())

    def _reached(self, names: Iterable[str], states: Collection[State]) -> bool:
        return all(self._tiers[name].state in states for name in names)

    def _timed(self, tier: str) -> TierStatus:
        """Return a status whose running clock is brought up to now."""
        status = self._tiers[tier]
        passed = time.monotonic() - self._since.get(tier, 0.0)
        if status.state == State.WRITING:
            return replace(status, seconds=passed)
        if status.state == State.WRITTEN:
            return replace(status, commit_seconds=passed)
        return status


def _forget_locals(error: BaseException | None) -> None:
    """Empty the frames of a failure, which would keep views of the staging image alive."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
