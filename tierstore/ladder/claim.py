"""The number of a life of a job: chosen above all that are known, claimed by its record.

A claim keeps numbers apart and tells those that come later; which launch is the newer is said by
its commits. So a tier that does not answer holds nobody up: it is claimed when it does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from tierstore.checkpoint.store import RunStore
from tierstore.checkpoint.timeline import Launch, next_launch, started_after
from tierstore.errors import AlreadyExistsError, CheckpointError, TierstoreError
from tierstore.keys import AttemptId, LaunchId
from tierstore.ladder.survey import Survey, ask, survey
from tierstore.ladder.tiers import OpenTier
from tierstore.logs import logger

_log = logger(__name__)
_CLAIMS = 100  # jobs that may race for a number before something else must be wrong


def survey_all(tiers: Sequence[OpenTier], run: str) -> Survey:
    """Return what the tiers hold; a tier that cannot be listed is an error."""
    seen = survey(tiers, run, patient=True)
    for error in seen.errors.values():
        raise error
    return seen


def launch_after(
    seen: Survey, nonce: str, parent: AttemptId | None, world_size: int, *, since: float = 0.0
) -> Launch:
    """Return a launch that is newer than all that were seen; it is not claimed yet.

    Args:
        seen: what the tiers hold now.
        nonce: the launch's.
        parent: the attempt that was restored; None for a line of its own.
        world_size: ranks in the job.
        since: when the newest launch began that was seen before, on a tier that may be away now.
    """
    numbers = [*seen.everything.numbers, parent.launch.number if parent else 0]
    started = started_after((since, *seen.began), time.time())
    return Launch(next_launch(numbers), nonce, parent, world_size, started)


def warn_anew(run: str, steps: Sequence[int]) -> None:
    """Warn of a launch that begins a line of its own beside checkpoints of these latest steps."""
    if steps:
        _log.warning(
            "run %s has checkpoints up to step %d, and this launch begins anew without restoring "
            "one: its steps become the latest",
            run,
            max(steps),
        )


def claim(stores: Sequence[RunStore], launch: Launch) -> Launch:
    """Claim a launch in every store, under the first number from its own on that is free in all.

    Args:
        stores: the run on each tier.
        launch: what `launch_after` returned.

    Raises:
        CheckpointError: a hundred are taken, which no race explains.
        StorageError: a store refuses.
    """

    def free(claimed: Launch) -> bool:
        return False not in [_claimed(store, claimed) for store in stores]

    return _first_free(stores[0].keys.run, launch, free)


def claim_where_answered(tiers: Sequence[OpenTier], run: str, launch: Launch) -> Launch:
    """Claim a launch as `claim` does, but go on without tiers that refuse or do not answer soon.

    A save is waiting for it: a tier that lists and takes nothing, as HDFS in safe mode, must not
    hold it up for as long as requests are repeated. The Saver claims the launch there later.

    Raises:
        CheckpointError: a hundred numbers are taken, which no race explains.
    """
    left = {tier.name: tier for tier in tiers}

    def free(claimed: Launch) -> bool:
        answers = ask([*left.values()], run, lambda store: _claimed(store, claimed))
        for name, answer in answers.items():
            if isinstance(answer, TierstoreError):
                _log.warning(
                    "run %s: launch %d is not claimed on %s for now: %s",
                    *(run, claimed.number, left.pop(name).backend.url, str(answer)),
                )
        return False not in answers.values()

    return _first_free(run, launch, free)


def _first_free(run: str, launch: Launch, free: Callable[[Launch], bool]) -> Launch:
    for number in range(launch.number, launch.number + _CLAIMS):
        claimed = replace(launch, number=number)
        if free(claimed):
            return claimed
    raise CheckpointError(f"run {run!r}: launches {launch.number} to {number} were all taken")


def _claimed(store: RunStore, launch: Launch) -> bool:
    try:
        store.claim_launch(launch)
    except AlreadyExistsError:
        return False
    return True


class Claims:
    """The launches whose saves may be written to one tier, each claimed there first."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._known: set[LaunchId] = set()

    def claim(self, launch: Launch) -> None:
        """Claim a launch, once; one whose number is another's saves all the same.

        Raises:
            StorageError: the tier does not answer.
        """
        if launch.id in self._known:
            return
        if not _claimed(self._store, launch):
            _log.warning(
                "run %s: on %s another launch has number %d; this one is told from it by its "
                "nonce, %s",
                *(self._store.keys.run, self._store.backend.url, *launch.id),
            )
        self._known.add(launch.id)
