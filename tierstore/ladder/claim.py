"""The number of a life of a job: chosen above all that are known, claimed by its record."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from tierstore.checkpoint.store import RunStore
from tierstore.checkpoint.timeline import Launch, next_launch
from tierstore.errors import AlreadyExistsError, CheckpointError
from tierstore.keys import Attempt
from tierstore.ladder.find import Survey, survey
from tierstore.ladder.tiers import OpenTier

_log = logging.getLogger(__name__)
_CLAIMS = 100  # jobs that may race for a number before something else must be wrong


def survey_all(tiers: Sequence[OpenTier], run: str) -> Survey:
    """Return what the tiers hold; a tier that cannot be listed is an error."""
    seen = survey(tiers, run)
    for error in seen.errors.values():
        raise error
    return seen


def next_number(seen: Survey, run: str, parent: Attempt | None, *, warn: bool) -> int:
    """Return the lowest number above every launch seen, warning of a line that begins anew."""
    commits = [attempt for tier in seen.commits.values() for attempt in tier]
    if warn and parent is None and seen.timeline:
        _log.warning(
            "run %s has checkpoints up to step %d, and this launch begins anew without restoring "
            "one: its steps become the latest",
            run,
            seen.timeline[0].step,
        )
    return next_launch(seen.launches, commits)


def claim_number(
    stores: Sequence[RunStore], number: int, nonce: str, parent: Attempt | None, world_size: int
) -> Launch:
    """Claim the first launch from `number` on that is free in every store.

    Raises:
        CheckpointError: a hundred are taken, which no race explains.
    """
    line = None if parent is None else (parent.launch, parent)
    for candidate in range(number, number + _CLAIMS):
        launch = Launch(candidate, nonce, line, world_size, time.time())
        try:
            for store in stores:
                store.claim_launch(launch)
        except AlreadyExistsError:
            continue
        return launch
    run = stores[0].keys.run
    raise CheckpointError(f"run {run!r}: launches {number} to {candidate} were all taken")
