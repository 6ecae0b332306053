"""The steps of a run: one row for each try at saving one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tierstore.backend import ObjectInfo
from tierstore.checkpoint.commit import Commit
from tierstore.checkpoint.objects import read_each
from tierstore.checkpoint.store import RunStore
from tierstore.errors import CheckpointNotFoundError
from tierstore.keys import Attempt, AttemptId
from tierstore.logs import logger
from tierstore.operations import inspect
from tierstore.operations.advice import of_tier, said

if TYPE_CHECKING:
    from tierstore.ladder.tiers import OpenTier

_log = logger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """One try at saving a step, and the tiers that hold it.

    Attributes:
        step: the step saved.
        launch: the number of the launch that saved it.
        number: which try of that launch at this step, from 1.
        line: "latest", "timeline" (what a restore can choose), "part" (newer, and every tier that
            has it holds some of its ranks), "abandoned" or "deleted".
        tiers: where it is, fastest first.
        nbytes: bytes of its tensors; None if it is deleted, or its commit cannot be read.
        saved_at: when the first of these tiers had it whole, by that store's clock, in UTC; None if
            it is deleted.
    """

    step: int
    launch: int
    number: int
    line: str
    tiers: tuple[str, ...]
    nbytes: int | None
    saved_at: datetime | None


def list_steps(
    tiers: Sequence[OpenTier], run: str, *, everything: bool = False, allow_unseen: bool = False
) -> list[Step]:
    """Return a run's steps, the newest first; see `Run.steps`."""
    try:
        found = inspect.steps(tiers, run)
    except CheckpointNotFoundError:
        return []
    check_seen(found.unseen, allow_unseen=allow_unseen)
    rows = [row for row in found.steps if everything or row.line in inspect.RESTORABLE]
    alive = {AttemptId(Attempt(r.step, r.launch, r.number), r.nonce): r.tiers for r in rows}
    facts = _facts(tiers, run, alive)
    return [
        Step(row.step, row.launch, row.number, row.line, row.tiers, *facts.get(this, (None, None)))
        for this, row in zip(alive, rows, strict=True)
    ]


def check_seen(unseen: inspect.Unseen, *, allow_unseen: bool) -> None:
    """Raise what a tier failed with, or, if it may be missing, log it."""
    for name, error in unseen:
        if not allow_unseen:
            raise of_tier(name, error) from error
        _log.warning("tier %s cannot be listed: %s", name, said(error))


_Fact = tuple[int | None, datetime | None]


def _facts(
    tiers: Sequence[OpenTier], run: str, rows: Mapping[AttemptId, Sequence[str]]
) -> dict[AttemptId, _Fact]:
    """Return bytes and time of each attempt, from the commits on the tiers that hold it."""
    sizes: dict[AttemptId, int] = {}
    times: dict[AttemptId, float] = {}
    for tier in tiers:
        held = [this for this, holders in rows.items() if tier.name in holders]
        if not held:
            continue
        store = RunStore(tier.backend, run)
        entries = store.entries()
        here = [this for this in held if this.attempt in entries]
        for this in here:
            mtime = entries[this.attempt].mtime
            times[this] = min(times.get(this, mtime), mtime)
        keys = {store.keys.commit(this.attempt): this for this in here if this not in sizes}
        infos = [ObjectInfo(k, entries[this.attempt].size, 0.0) for k, this in keys.items()]
        for commit in read_each(tier.backend, infos, Commit.from_bytes):
            if isinstance(commit, Commit):
                sizes[commit.id] = commit.nbytes
    return {this: (sizes.get(this), datetime.fromtimestamp(at, UTC)) for this, at in times.items()}
