"""Find the checkpoint to restore: the newest on the timeline, over all tiers.

Launches and commits of all tiers are put together before the timeline is drawn, so a tier that
missed a launch does not bring back an abandoned line. A set of fragments that is complete but was
never committed, because its last writer died, is committed first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from tierstore.checkpoint.commit import Commit
from tierstore.checkpoint.store import RunStore
from tierstore.checkpoint.timeline import Launch, timeline
from tierstore.errors import (
    AttemptDeletedError,
    CheckpointError,
    CheckpointNotFoundError,
    TierstoreError,
)
from tierstore.keys import Attempt, RunKeys, whole
from tierstore.ladder.tiers import OpenTier

if TYPE_CHECKING:
    from tierstore.checkpoint.manifest import Manifest
    from tierstore.transfer.read import Replica

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Survey:
    """What the tiers hold of a run.

    Attributes:
        launches: by number, from all tiers.
        commits: by tier, each attempt and whether it is alive (not a tombstone).
        errors: the tiers that could not be listed.
    """

    launches: dict[int, Launch] = field(default_factory=dict)
    commits: dict[str, dict[Attempt, bool]] = field(default_factory=dict)
    errors: dict[str, TierstoreError] = field(default_factory=dict)

    @property
    def timeline(self) -> list[Attempt]:
        """The attempts that are alive on some tier and on the timeline, newest first."""
        alive = {a for commits in self.commits.values() for a, lives in commits.items() if lives}
        return timeline(self.launches, alive)

    def holders(self, attempt: Attempt) -> list[str]:
        """The tiers, in order, on which an attempt is alive."""
        return [tier for tier, commits in self.commits.items() if commits.get(attempt)]


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint that can be read.

    Attributes:
        run: the run.
        attempt: which try.
        commit: its record.
        manifest: what is in it.
        replicas: the tiers that hold it, in the order of the ladder; not empty.
        passed_over: newer attempts, and tiers, that were not used, each with the reason.
    """

    run: str
    attempt: Attempt
    commit: Commit
    manifest: Manifest
    replicas: tuple[Replica, ...]
    passed_over: tuple[str, ...] = ()

    def check_deleted(self) -> None:
        """Look again, after something was not found, whether the checkpoint still exists.

        Raises:
            AttemptDeletedError: it was deleted on every tier meanwhile.
        """
        deleted: AttemptDeletedError | None = None
        for replica in self.replicas:
            try:
                RunStore(replica.backend, self.run).read_commit(self.attempt)
            except AttemptDeletedError as error:
                deleted = error
            except TierstoreError:
                return  # it may be there: the caller's own error stands
            else:
                return
        if deleted is not None:
            raise deleted


def survey(tiers: Sequence[OpenTier], run: str) -> Survey:
    """List every tier, after committing what is complete there and newer than its commits.

    A tier that fails is recorded, not raised.
    """
    result = Survey()
    for tier in tiers:
        store = RunStore(tier.backend, run)
        try:
            launches = store.launches()
            commits = store.commits()
            commits.update(_commit_complete(store, launches, commits))
        except TierstoreError as error:
            result.errors[tier.name] = error
            continue
        for number, launch in launches.items():
            known = result.launches.setdefault(number, launch)
            if known.nonce != launch.nonce:
                _log.warning(
                    "run %s: launch %d on tier %s is another job's than on the tiers above; "
                    "its checkpoints there are left aside",
                    *(run, number, tier.name),
                )
                commits = {a: lives for a, lives in commits.items() if a.launch != number}
        result.commits[tier.name] = commits
    return result


def choose(
    tiers: Sequence[OpenTier], run: str, *, step: int | None = None, allow_older: bool = False
) -> Found:
    """Return the newest checkpoint of a run that can be restored here.

    Args:
        tiers: the ladder.
        run: the run.
        step: this step instead of the newest; of several tries the newest on the timeline.
        allow_older: take an older one when the newest cannot be used, or when a tier that may
            hold a newer one cannot be listed.

    Raises:
        CheckpointNotFoundError: there is none.
        CheckpointError: the newest cannot be used on any tier, and why.
        StorageError: a tier cannot be listed.
    """
    step = None if step is None else whole("step", step)
    seen = survey(tiers, run)
    passed = [f"tier {tier} cannot be listed: {error}" for tier, error in seen.errors.items()]
    attempts = [attempt for attempt in seen.timeline if step is None or attempt.step == step]
    if seen.errors and not (allow_older and attempts):
        raise next(iter(seen.errors.values()))  # it may hold a newer one, or the only one
    for attempt in attempts:
        try:
            found = open_attempt(tiers, run, attempt, passed_over=tuple(passed))
        except TierstoreError as error:
            if not allow_older:
                raise
            passed.append(f"step {attempt.step}: {error}")
            _log.warning("run %s: step %d is passed over: %s", run, attempt.step, str(error))
        else:
            return found
    what = "checkpoint" if step is None else f"checkpoint of step {step}"
    reasons = "".join(f"; {reason}" for reason in passed)
    steps = sorted({attempt.step for attempt in seen.timeline})
    raise CheckpointNotFoundError(
        f"run {run!r} has no {what} on {[tier.name for tier in tiers]}{reasons}",
        hint=f"it has steps {steps[-10:]}" if steps else "",
    )


def open_attempt(
    tiers: Sequence[OpenTier], run: str, attempt: Attempt, *, passed_over: tuple[str, ...] = ()
) -> Found:
    """Open one attempt on every tier that holds it whole.

    Raises:
        CheckpointError: no tier has a readable commit and manifest of the whole world, and why.
    """
    from tierstore.transfer.read import Replica

    replicas: list[Replica] = []
    found: tuple[Commit, Manifest] | None = None
    troubles: list[tuple[str, TierstoreError]] = []
    for tier in tiers:
        store = RunStore(tier.backend, run)
        try:
            commit = store.read_commit(attempt)
            _check_whole(commit, tier)
            if found is None:
                found = commit, store.open_manifest(commit)
            elif found[0].manifest != commit.manifest:
                raise CheckpointError(
                    f"its manifest is {commit.manifest}, {found[0].manifest} above"
                )
        except TierstoreError as error:
            troubles.append((tier.name, error))
            continue
        keys = RunKeys(run).attempt(attempt, commit.nonce)
        replicas.append(Replica(tier.name, tier.backend, keys))
    notes = tuple(
        f"tier {name}: {error}"
        for name, error in troubles
        if not isinstance(error, CheckpointNotFoundError)  # a tier need not have every step
    )
    if found is None:
        _raise_unusable(run, attempt, troubles, notes)
    return Found(run, attempt, *found, tuple(replicas), (*passed_over, *notes))


def _raise_unusable(
    run: str, attempt: Attempt, troubles: Sequence[tuple[str, TierstoreError]], notes: Sequence[str]
) -> NoReturn:
    real = [error for _, error in troubles if not isinstance(error, CheckpointNotFoundError)]
    if len(real) == 1:
        raise real[0]
    if not real:
        raise CheckpointNotFoundError(f"run {run!r} has no attempt {attempt}")
    if all(isinstance(error, AttemptDeletedError) for error in real):
        raise real[0]
    raise CheckpointError(
        f"run {run!r}, step {attempt.step} cannot be restored from any tier: {'; '.join(notes)}",
        hint="restore another step, or allow an older one",
    )


def _check_whole(commit: Commit, tier: OpenTier) -> None:
    if not commit.whole:
        raise CheckpointError(
            f"step {commit.attempt.step} on tier {tier.name!r} holds {len(commit.ranks)} of "
            f"{commit.world_size} ranks: the tier was local to a node",
            hint="restore from a tier that all ranks share",
        )


def _commit_complete(
    store: RunStore, launches: dict[int, Launch], commits: dict[Attempt, bool]
) -> dict[Attempt, bool]:
    """Commit the complete attempts that are newer than every commit, and return them."""
    newest = max(((a.launch, a.step, a.number) for a in commits), default=(0, 0, 0))
    fresh: dict[Attempt, bool] = {}
    for attempt, nonce in store.attempts():
        launch = launches.get(attempt.launch)
        if attempt in commits or launch is None or launch.nonce != nonce:
            continue
        if (attempt.launch, attempt.step, attempt.number) < newest:
            continue
        try:
            if store.try_commit(attempt, nonce) is not None:
                fresh[attempt] = True
                _log.warning("step %d was complete and is committed now", attempt.step)
        except AttemptDeletedError:
            fresh[attempt] = False
        except TierstoreError as error:
            _log.warning("step %d was never committed: %s", attempt.step, str(error))
    return fresh
