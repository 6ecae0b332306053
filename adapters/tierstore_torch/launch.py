"""The number of this life of the job, claimed at its first save."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from tierstore.checkpoint.store import RunStore
from tierstore.checkpoint.timeline import Launch
from tierstore.keys import Attempt
from tierstore.ladder.claim import claim_number, next_number, survey_all
from tierstore.ladder.tiers import OpenTier
from tierstore_torch.group import Group


def claim_launch(
    tiers: Sequence[OpenTier], run: str, group: Group, parent: Attempt | None
) -> Launch:
    """Claim the next launch of a run. Collective.

    The number is above all that any rank sees on any tier. It is claimed on the first tier that
    all ranks share or, without one, on the first; the Saver writes the record to the others.

    Args:
        tiers: the ladder.
        run: the run.
        group: all ranks.
        parent: the attempt that was restored; None for a line of its own.

    Raises:
        StorageError: a tier cannot be listed, so a number might be used twice.
    """

    def look() -> int:
        return next_number(survey_all(tiers, run), run, parent, warn=group.rank == 0)

    number = max(group.all_gather(group.together(look)))

    def claim() -> Launch:
        shared = [tier for tier in tiers if tier.covers(group.size)]
        store = RunStore((shared or list(tiers))[0].backend, run)
        return claim_number([store], number, secrets.token_hex(8), parent, group.size)

    return group.centrally(lambda: None, lambda _: [claim()] * group.size)
