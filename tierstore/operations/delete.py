"""Delete one checkpoint on every tier of a ladder.

Tombstones come first, on all tiers, the lowest first: from it the others are restored and filled.
They are written also where the checkpoint is not: a drain or a migration that is still on its way
there finds its place taken and gives up. Then readers get their grace, once for all tiers, and only
then data goes. So whatever is killed in between, a tier has either all of the checkpoint or a
tombstone, no other tier brings it back, and the same call carries on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tierstore.checkpoint import GRACE
from tierstore.checkpoint.delete import Deletion
from tierstore.checkpoint.store import RunStore
from tierstore.errors import (
    AlreadyExistsError,
    AttemptDeletedError,
    CheckpointError,
    CheckpointNotFoundError,
    FormatError,
    NewerFormatError,
    TierstoreError,
)
from tierstore.operations.advice import said
from tierstore.operations.tiers import opened

if TYPE_CHECKING:
    from tierstore.keys import AttemptId
    from tierstore.ladder.tiers import OpenTier
    from tierstore.operations.tiers import Ladder

State = Literal["alive", "deleted", "absent", "another"]


def delete(
    ladder: Ladder,
    run: str,
    this: AttemptId,
    *,
    grace: float = GRACE,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Delete a checkpoint on every tier; what an earlier call left undone is done.

    Args:
        ladder: a configuration, URLs or open tiers.
        run: the run.
        this: which try, of which launch.
        grace: seconds from the tombstone that readers have before its data goes.
        sleep: how to wait.

    Raises:
        CheckpointNotFoundError: every tier answered, and none has it or its tombstone.
        CheckpointError: some tiers did not do it; it names them. On the others it is deleted.
        ConfigError: the configuration is wrong.
    """
    with opened(ladder, patience=None) as tiers:
        failed = delete_here(tiers, run, this, grace=grace, sleep=sleep)
    if failed:
        raise not_deleted(run, this, failed)


def not_deleted(run: str, this: AttemptId, failed: dict[str, TierstoreError]) -> CheckpointError:
    """Return the error that names the tiers that failed."""
    reasons = "; ".join(f"{tier}: {said(error)}" for tier, error in failed.items())
    return CheckpointError(
        f"step {this.step} of run {run!r} is not deleted on every tier: {reasons}",
        hint="delete it again when they answer: that carries on",
    )


@dataclass(slots=True)
class _Grave:
    """One tier's place of the checkpoint."""

    tier: OpenTier
    store: RunStore
    deletion: Deletion
    state: State


def delete_here(
    tiers: Sequence[OpenTier],
    run: str,
    this: AttemptId,
    *,
    grace: float = GRACE,
    sleep: Callable[[float], None] = time.sleep,
    known: bool = False,
) -> dict[str, TierstoreError]:
    """Delete a checkpoint on some open tiers; see `delete`.

    Args:
        tiers: which, fastest first.
        run: the run.
        this: which try, of which launch.
        grace: as in `delete`.
        sleep: as in `delete`.
        known: some tier has it, if not one of these.

    Returns:
        The tiers that did not do it, each with its error.

    Raises:
        CheckpointNotFoundError: as `delete`; nothing was written.
    """
    graves: list[_Grave] = []
    failed: dict[str, TierstoreError] = {}

    for tier in reversed(tiers):
        with _noting(failed, tier):
            deletion = Deletion(tier.backend, grace=grace, sleep=sleep)
            store = RunStore(tier.backend, run)
            graves.append(_Grave(tier, store, deletion, _state(store, this)))
    here = failed or any(grave.state in ("alive", "deleted") for grave in graves)
    if not (known or here):
        names = ", ".join(tier.name for tier in tiers)
        raise CheckpointNotFoundError(f"run {run!r} has no attempt {this.attempt} on {names}")
    for grave in graves:
        with _noting(failed, grave.tier):
            _bury(grave, this)
    for grave in graves:
        if grave.tier.name not in failed and grave.state != "another":
            with _noting(failed, grave.tier):
                grave.deletion.remove_below(grave.store.keys.rivals(this.attempt))
    return failed


@contextmanager
def _noting(failed: dict[str, TierstoreError], tier: OpenTier) -> Iterator[None]:
    try:
        yield
    except TierstoreError as error:
        failed[tier.name] = error


def _state(store: RunStore, this: AttemptId) -> State:
    """Return what is at the commit's key."""
    try:
        commit = store.read_commit(this.attempt)
    except AttemptDeletedError:
        return "deleted"
    except CheckpointNotFoundError:
        return "absent"
    except NewerFormatError:
        raise
    except FormatError:  # damaged: its folder tells whose it is
        folder = store.keys.attempt(*this).root if this.nonce else store.keys.rivals(this.attempt)
        return "another" if next(store.backend.list(folder), None) is None else "alive"
    return "alive" if this.nonce in ("", commit.nonce) else "another"


def _bury(grave: _Grave, this: AttemptId) -> None:
    """Put a tombstone there, unless there is one, or another launch's commit."""
    key = grave.store.keys.commit(this.attempt)
    if grave.state == "absent":
        try:
            grave.deletion.bury(key, if_absent=True)
        except AlreadyExistsError:  # it was committed just now
            grave.state = _state(grave.store, this)
    if grave.state == "alive":
        grave.deletion.bury(key)
    elif grave.state == "deleted":
        for info in grave.store.backend.list(key):
            grave.deletion.found(key, info.mtime)
