"""The number of this life of the job, claimed at its first save."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

from tierstore.checkpoint.timeline import Launch
from tierstore.keys import AttemptId
from tierstore.ladder.claim import Claims, claim_where_answered, launch_after, warn_anew
from tierstore.ladder.survey import ask, survey
from tierstore.ladder.tiers import OpenTier
from tierstore_torch.group import Group


def claim_launch(
    tiers: Sequence[OpenTier],
    run: str,
    group: Group,
    parent: AttemptId | None,
    *,
    since: float = 0.0,
) -> Launch:
    """Claim the next launch of a run. Collective.

    Each tier is looked at by the first of the ranks that share it. The launch is newer than all
    that they see, and claimed on every tier that answers; on the others by the Saver, when they do.

    Args:
        tiers: the ladder.
        run: the run.
        group: all ranks.
        parent: the attempt that was restored; None for a line of its own.
        since: when the newest launch began that this process has seen, or was.
    """
    mine = [tier for tier in tiers if tier.ranks[0] == group.rank]
    seen = survey(mine, run)
    answered = [tier for tier in mine if tier.name in seen.tiers]

    def decide(offers: list[tuple[Launch, int | None]]) -> list[Launch]:
        launch = replace(
            offers[0][0],
            number=max(launch.number for launch, _ in offers),
            started=max(launch.started for launch, _ in offers),
        )
        if parent is None:
            warn_anew(run, [step for _, step in offers if step is not None])
        shared = [tier for tier in answered if tier.covers(group.size)]
        return [claim_where_answered(shared, run, launch)] * group.size

    def offer() -> tuple[Launch, int | None]:
        launch = launch_after(seen, secrets.token_hex(8), parent, group.size, since=since)
        return launch, seen.timeline[0].step if seen.timeline else None

    launch = group.centrally(offer, decide)
    own = [tier for tier in answered if not tier.covers(group.size)]
    ask(own, run, lambda store: Claims(store).claim(launch))  # the Saver tries again, and tells
    return launch
