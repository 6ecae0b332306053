"""Find the checkpoint to restore: the newest on the timeline, over all tiers.

Any one record may be damaged: a commit or a manifest is taken from another tier, and where no tier
has a good one, from the fragments that it was made of.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from tierstore.checkpoint.commit import Commit
from tierstore.checkpoint.store import RunStore
from tierstore.errors import (
    AttemptDeletedError,
    CheckpointError,
    CheckpointNotFoundError,
    IntegrityError,
    NewerFormatError,
    TierstoreError,
)
from tierstore.keys import Attempt, AttemptId, RunKeys, whole
from tierstore.ladder.survey import Survey, survey
from tierstore.ladder.tiers import OpenTier
from tierstore.logs import logger

if TYPE_CHECKING:
    from tierstore.checkpoint.manifest import Manifest
    from tierstore.transfer.read import Replica

_log = logger(__name__)


class PartError(CheckpointError):
    """A tier holds some of the ranks only: that is no checkpoint, and hides none."""


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint that can be read.

    Attributes:
        run: the run.
        commit: its record.
        manifest: what is in it.
        replicas: the tiers that hold it, in the order of the ladder; not empty.
        passed_over: newer attempts, and tiers, that were not used, each with the reason.
        unseen: the tiers that did not answer, so that nobody else asks them in vain.
        since: when the newest launch began that was seen, for `launch_after`.
    """

    run: str
    commit: Commit
    manifest: Manifest
    replicas: tuple[Replica, ...]
    passed_over: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    since: float = 0.0

    @property
    def attempt(self) -> Attempt:
        """Which try."""
        return self.commit.attempt

    @property
    def id(self) -> AttemptId:
        """Which try, of which launch."""
        return self.commit.id

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


def choose(
    tiers: Sequence[OpenTier],
    run: str,
    *,
    step: int | None = None,
    allow_older: bool = False,
    failed: Collection[AttemptId] = (),
) -> Found:
    """Return the newest checkpoint of a run that can be restored here.

    Args:
        tiers: the ladder.
        run: the run.
        step: this step instead of the newest; of several tries the newest on the timeline, else on
            an abandoned line.
        allow_older: take an older one when the newest cannot be used, or when a tier that may
            hold a newer one cannot be listed.
        failed: what was chosen before and turned out to be unreadable; an older one is wanted.

    Raises:
        CheckpointNotFoundError: there is none.
        CheckpointError: the newest cannot be used on any tier, and why; with `allow_older`, none.
        StorageError: a tier cannot be listed.
    """
    step = None if step is None else whole("step", step)
    seen = survey(tiers, run)
    absent: set[AttemptId] = set()
    below = {*failed}
    candidates = _candidates(seen, step, absent, below)
    passed = _without(seen, run, older=bool(candidates), allowed=allow_older)
    here = [tier for tier in tiers if tier.name in seen.tiers]
    unusable: TierstoreError | None = None
    while candidates:
        wanted = candidates[0]
        try:
            found = open_attempt(here, run, wanted)
        except TierstoreError as error:
            if isinstance(error, PartError | AttemptDeletedError):
                absent.add(wanted)  # it is no checkpoint, or no more, and hides none
            elif allow_older:
                below.add(wanted)
            else:
                raise
            unusable = unusable or error
            passed.append(f"step {wanted.step}: {error}")
            _log.warning("run %s: step %d is passed over: %s", run, wanted.step, str(error))
            candidates = _candidates(seen, step, absent, below)
        else:
            if step is None and not failed:
                _log_idle(seen, found)
            if step is not None and wanted not in seen.timeline:
                text = "step %d of run %s is of an abandoned line (attempt %s)"
                _log.warning(text, step, run, wanted)
            passed_over = (*passed, *found.passed_over)
            unseen, since = tuple(seen.errors), max(seen.began, default=0.0)
            return replace(found, passed_over=passed_over, unseen=unseen, since=since)
    if unusable is not None:  # "there is none" would be wrong, and who is told it begins anew
        raise unusable
    raise _none(tiers, run, seen, step, failed)


def _candidates(
    seen: Survey, step: int | None, absent: set[AttemptId], below: set[AttemptId]
) -> list[AttemptId]:
    """Return what may be restored, newest first: what is not absent, and older than what failed."""
    line = seen.line(step, without=absent)
    return line[max((line.index(each) for each in below if each in line), default=-1) + 1 :]


def _none(
    tiers: Sequence[OpenTier],
    run: str,
    seen: Survey,
    step: int | None,
    failed: Collection[AttemptId],
) -> CheckpointNotFoundError:
    what = "checkpoint" if step is None else f"checkpoint of step {step}"
    what += f" older than step {min(each.step for each in failed)}" if failed else ""
    steps = sorted({each.step for each in seen.timeline})
    return CheckpointNotFoundError(
        f"run {run!r} has no {what} on {[tier.name for tier in tiers]}",
        hint=f"it has steps {steps[-10:]}" if steps else "",
    )


def _without(seen: Survey, run: str, *, older: bool, allowed: bool) -> list[str]:
    """Return which tiers were not seen, if it may go on without them, and can with an older one.

    Raises:
        StorageError: it may not: such a tier may hold a newer checkpoint, or the only one.
    """
    passed = []
    for tier, error in seen.errors.items():
        if not (older and allowed):
            text = f"tier {tier!r} may hold a newer step; allow_older=True goes on without it"
            hint = text if older else f"tier {tier!r} may hold it: wait until it answers"
            error.hint = f"{error.hint}; {hint}" if error.hint else hint
            raise error
        passed.append(f"tier {tier} cannot be listed: {error}")
        _log.warning(
            "run %s: tier %s cannot be listed and may hold a newer step: %s", run, tier, str(error)
        )
    return passed


def _log_idle(seen: Survey, found: Found) -> None:
    for launch in seen.idle():
        parent = launch.parent
        if parent is not None and parent.attempt == found.attempt:
            continue  # it went on from here and was cut off
        began = "began anew" if parent is None else f"went back to step {parent.step}"
        _log.warning(
            "run %s: launch %d %s and saved nothing; step %d is still the latest",
            *(found.run, launch.number, began, found.attempt.step),
        )


def open_attempt(tiers: Sequence[OpenTier], run: str, wanted: AttemptId) -> Found:
    """Open one attempt on every tier that holds it whole.

    Raises:
        CheckpointError: no tier has the commit and the manifest of the whole world, nor the
            fragments that they were made of, and why.
    """
    from tierstore.transfer.read import Replica

    troubles: dict[str, TierstoreError] = {}
    opened = _opened(tiers, run, wanted, troubles) or _recovered(tiers, run, wanted, troubles)
    notes = tuple(
        f"tier {name}: {error}"
        for name, error in troubles.items()
        if not isinstance(error, CheckpointNotFoundError)  # a tier need not have every step
    )
    if opened is None:
        _raise_unusable(run, wanted, list(troubles.values()), notes)
    commit, manifest, names = opened
    keys = RunKeys(run).attempt(*commit.id)
    replicas = tuple(Replica(t.name, t.backend, keys) for t in tiers if t.name in names)
    return Found(run, commit, manifest, replicas, notes)


_Opened = tuple[Commit, "Manifest", set[str]]
"""A commit, its manifest, and the names of the tiers to read from."""


def _opened(
    tiers: Sequence[OpenTier], run: str, wanted: AttemptId, troubles: dict[str, TierstoreError]
) -> _Opened | None:
    """Open the first good copy, and note what is wrong with the others."""
    found: tuple[Commit, Manifest] | None = None
    names: set[str] = set()
    for tier in tiers:
        store = RunStore(tier.backend, run)
        try:
            commit = store.read_commit(wanted.attempt)
            _check_whole(commit, wanted, tier)
            if found is None:
                found = commit, store.open_manifest(commit).checked(commit)
            elif found[0].manifest != commit.manifest:
                raise CheckpointError(
                    f"its manifest is {commit.manifest}, {found[0].manifest} above"
                )
        except TierstoreError as error:
            troubles[tier.name] = error
        else:
            names.add(tier.name)
    return None if found is None else (*found, names)


def _recovered(
    tiers: Sequence[OpenTier], run: str, wanted: AttemptId, troubles: dict[str, TierstoreError]
) -> _Opened | None:
    """Make commit and manifest anew where they are damaged on every tier that has them."""
    damaged = [tier for tier in tiers if _damaged(troubles[tier.name])]
    for tier in damaged:
        try:
            commit, manifest = RunStore(tier.backend, run).recover(
                wanted.attempt, wanted.nonce or None
            )
            _check_whole(commit, wanted, tier)
        except TierstoreError as error:
            _log.debug("%s on tier %s cannot be recovered: %s", wanted, tier.name, str(error))
            continue
        _log.warning(
            "run %s, step %d: its commit or manifest is damaged on every tier; what it said was "
            "put together from the fragments on tier %s",
            *(run, wanted.step, tier.name),
        )
        return commit, manifest, {each.name for each in damaged}
    return None


def _damaged(error: TierstoreError) -> bool:
    return isinstance(error, IntegrityError) and not isinstance(error, NewerFormatError)


def _raise_unusable(
    run: str, wanted: AttemptId, troubles: Sequence[TierstoreError], notes: Sequence[str]
) -> NoReturn:
    real = [error for error in troubles if not isinstance(error, CheckpointNotFoundError)]
    if len(real) == 1 or (real and all(isinstance(error, PartError) for error in real)):
        raise real[0]
    if not real:
        raise CheckpointNotFoundError(f"run {run!r} has no attempt {wanted.attempt}")
    if all(isinstance(error, AttemptDeletedError) for error in real):
        raise real[0]
    raise CheckpointError(
        f"run {run!r}, step {wanted.step} cannot be restored from any tier: {'; '.join(notes)}",
        hint="restore another step, or allow an older one",
    )


def _check_whole(commit: Commit, wanted: AttemptId, tier: OpenTier) -> None:
    if wanted.nonce not in ("", commit.nonce):
        raise CheckpointNotFoundError(
            f"step {wanted.step} on tier {tier.name!r} is another launch's, {commit.nonce}"
        )
    if not commit.whole:
        raise PartError(
            f"step {wanted.step} on tier {tier.name!r} holds {len(commit.ranks)} of "
            f"{commit.world_size} ranks: the tier was local to a node",
            hint="restore from a tier that all ranks share",
        )
