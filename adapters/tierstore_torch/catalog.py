"""What all ranks of a job do together with what is saved: choose, list, delete."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tierstore.checkpoint import GRACE
from tierstore.door.steps import Step, list_steps
from tierstore.errors import CheckpointError, CheckpointNotFoundError, TierstoreError
from tierstore.keys import AttemptId, whole
from tierstore.ladder.find import Found, choose, open_attempt
from tierstore.ladder.survey import survey
from tierstore.ladder.tiers import OpenTier
from tierstore.operations.delete import delete_here, not_deleted
from tierstore_torch.group import Group

__all__ = ["GRACE", "Catalog", "Step"]


class Catalog:
    """One run on a ladder. Every method is collective.

    Args:
        tiers: the ladder as this rank sees it.
        run: the run.
        group: the ranks.
    """

    def __init__(self, tiers: Sequence[OpenTier], run: str, group: Group) -> None:
        self._tiers, self._run, self._group = tiers, run, group

    def choose(
        self, step: int | None, failed: Sequence[AttemptId], *, allow_older: bool
    ) -> Found | None:
        """Let rank 0 choose and every rank open it; None if the run has no checkpoint."""
        mine: list[Found] = []

        def pick(_: list[None]) -> list[tuple[AttemptId, tuple[str, ...]] | None]:
            try:
                mine.append(
                    choose(
                        *(self._tiers, self._run), step=step, allow_older=allow_older, failed=failed
                    )
                )
            except CheckpointNotFoundError:
                if step is not None or failed:
                    raise
                return [None] * self._group.size
            return [(mine[0].id, mine[0].unseen)] * self._group.size

        picked = self._group.centrally(lambda: None, pick)
        if picked is None:
            return None
        wanted, unseen = picked
        tiers = [tier for tier in self._tiers if tier.name not in unseen]
        return self._group.together(
            lambda: mine[0] if mine else open_attempt(tiers, self._run, wanted)
        )

    def steps(self, *, everything: bool, allow_unseen: bool) -> list[Step]:
        """Return on every rank what rank 0 sees; see `tierstore.Run.steps`."""

        def look(_: list[None]) -> list[list[Step]]:
            rows = list_steps(
                *(self._tiers, self._run), everything=everything, allow_unseen=allow_unseen
            )
            return [rows] * self._group.size

        return self._group.centrally(lambda: None, look)

    def delete(self, step: int, *, grace: float, busy: Collection[int]) -> None:
        """Delete the checkpoint of a step: each tier by the first rank of those that share it.

        Args:
            step: which; of several tries the newest on the timeline.
            grace: seconds that readers have.
            busy: the steps that this rank is still saving.

        Raises:
            CheckpointNotFoundError: there is none.
            CheckpointError: it is still being saved; or some tiers did not delete it.
            StorageError: a tier that may have it cannot be listed.
        """

        def pick(saving: list[Collection[int]]) -> list[AttemptId]:
            if any(step in steps for steps in saving):
                raise CheckpointError(
                    f"step {step} of run {self._run!r} is still being saved",
                    hint="wait for its save first",
                )
            return [self._find(step)] * self._group.size

        this = self._group.centrally(lambda: busy, pick)
        mine = [tier for tier in self._tiers if tier.ranks[0] == self._group.rank]
        failed = self._group.together(
            lambda: delete_here(mine, self._run, this, grace=grace, known=True)
        )
        everywhere: dict[str, TierstoreError] = {}
        for each in self._group.all_gather(failed):
            everywhere |= each
        if everywhere:
            raise not_deleted(self._run, this, everywhere)

    def _find(self, step: int) -> AttemptId:
        seen = survey(self._tiers, self._run)
        this = next(iter(seen.line(whole("step", step))), None)
        if this is not None:
            return this
        for error in seen.errors.values():
            raise error
        raise CheckpointNotFoundError(
            f"run {self._run!r} has no checkpoint of step {step} on "
            f"{[tier.name for tier in self._tiers]}"
        )
