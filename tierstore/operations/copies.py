"""The checkpoint that an operation is about, and each tier's copy of it.

Unlike a restore, which wants one good copy, a person wants to see every copy, and the tiers that
answer although another one does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tierstore.errors import CheckpointNotFoundError, TierstoreError
from tierstore.operations.advice import of_tier

if TYPE_CHECKING:
    from tierstore.checkpoint.commit import Commit
    from tierstore.checkpoint.manifest import Manifest
    from tierstore.checkpoint.timeline import Launch
    from tierstore.keys import Attempt, AttemptId
    from tierstore.ladder.tiers import OpenTier


@dataclass(frozen=True, slots=True)
class Located:
    """A checkpoint, and where it is.

    Attributes:
        run: the run.
        id: which try, of which launch.
        launch: its launch; None if neither a commit nor a claim describes it.
        tiers: those that hold its commit, in order.
        unseen: the tiers that could not be listed, each with its error.
    """

    run: str
    id: AttemptId
    launch: Launch | None
    tiers: list[OpenTier]
    unseen: Mapping[str, TierstoreError]

    @property
    def attempt(self) -> Attempt:
        """Which try."""
        return self.id.attempt


@dataclass(slots=True)
class TierCopy:
    """What one tier holds of a checkpoint.

    Attributes:
        tier: the tier.
        commit: its commit; None if it cannot be read.
        manifest: its manifest; None if it cannot be read, or was not asked for.
        troubles: (file, what is wrong) of the two.
    """

    tier: OpenTier
    commit: Commit | None = None
    manifest: Manifest | None = None
    troubles: list[tuple[str, TierstoreError]] = field(default_factory=list)


def locate(
    tiers: Sequence[OpenTier], run: str, step: int | None, attempt: AttemptId | None = None
) -> Located:
    """Return the latest checkpoint of a run, or the latest try at one step of it.

    Args:
        tiers: the ladder.
        run: the run.
        step: the step; the latest if None.
        attempt: this try at the step.

    Raises:
        CheckpointNotFoundError: there is none.
        TierstoreError: none is seen, and a tier that may have one cannot be listed.
    """
    from tierstore.ladder.survey import survey

    seen = survey(tiers, run)
    line = seen.line(step)
    if attempt is not None:
        line = [attempt] if seen.holders(attempt) else []
    this = next(iter(line), None)
    if this is None:
        for name, error in seen.errors.items():
            raise of_tier(name, error)
        what = "checkpoint" if step is None else f"checkpoint of step {step}"
        steps = [str(this.step) for this in seen.timeline]
        have = f"it has steps {', '.join(steps[:10])}{', ...' if steps[10:] else ''}"
        raise CheckpointNotFoundError(
            f"run {run!r} has no {what} on {', '.join(tier.name for tier in tiers)}",
            hint=have if steps else "`tierstore ls` lists every run",
        )
    holders = seen.holders(this)
    here = [tier for tier in tiers if tier.name in holders]
    return Located(run, this, seen.launches.get(this.launch), here, seen.errors)


def open_copy(located: Located, tier: OpenTier) -> TierCopy:
    """Read a tier's commit and manifest of a checkpoint; what is wrong with them is noted."""
    from tierstore.checkpoint.store import RunStore

    store, copy = RunStore(tier.backend, located.run), TierCopy(tier)
    key = store.keys.commit(located.attempt)
    try:
        commit = copy.commit = store.read_commit(located.attempt)
        keys = store.keys.attempt(located.attempt, commit.nonce)
        key = keys.manifest(commit.manifest_crc32c)
        copy.manifest = store.open_manifest(commit).checked(commit)
    except TierstoreError as error:
        copy.troubles.append((key, error))
    return copy
