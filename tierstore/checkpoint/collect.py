"""Collecting: attempts that never came to be, and tombstones that nobody can meet any more."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from tierstore.checkpoint.delete import Deletion, bury, clock, data_of, sweep
from tierstore.checkpoint.store import RunStore
from tierstore.errors import (
    AlreadyExistsError,
    AttemptDeletedError,
    CheckpointError,
    IntegrityError,
    NewerFormatError,
)
from tierstore.keys import Attempt

Outcome = Literal["committed", "young", "alive", "collected"]


def collect(
    store: RunStore,
    attempt: Attempt,
    nonce: str,
    *,
    older_than: float,
    grace: float,
    sleep: Callable[[float], None] = time.sleep,
) -> Outcome:
    """Decide what becomes of one folder under `data/`.

    A complete set of fragments is committed. Otherwise, if nothing in the folder is younger than
    `older_than` seconds by the store's clock, a tombstone is created if absent and the data goes.

    Returns:
        "committed" (now, or before), "young" (left alone), "alive" (its commit, or a fragment,
        cannot be judged by this version, so it is left alone), "collected".
    """
    try:
        if store.try_commit(attempt, nonce) is not None:
            return "committed"
    except AttemptDeletedError:
        sweep(store, attempt, grace=grace, sleep=sleep)
        return "collected"
    except NewerFormatError:
        return "alive"
    except AlreadyExistsError:
        # The key belongs to another launch for ever: this folder can never be committed.
        if not _older(store, attempt, nonce, older_than):
            return "young"
        # Nobody reads what has no commit.
        Deletion(store.backend, grace=0).remove_below(f"{store.keys.rivals(attempt)}{nonce}")
        return "collected"
    except (CheckpointError, IntegrityError):
        pass  # not a checkpoint, and never one
    if not _older(store, attempt, nonce, older_than):
        return "young"
    try:
        bury(store.backend, store.keys.commit(attempt), if_absent=True)
    except AlreadyExistsError:
        return "alive"
    sweep(store, attempt, grace=grace, sleep=sleep)
    return "collected"


def prune(store: RunStore, *, older_than: float) -> list[Attempt]:
    """Remove tombstones that no writer can meet any more, and return them.

    Those are of superseded launches, without data, and older than `older_than` seconds by the
    store's clock.
    """
    entries = store.entries()
    newest = max((*store.claims(), *(attempt.launch for attempt in entries)), default=0)
    dead = [a for a, entry in entries.items() if not entry.alive and a.launch < newest]
    now = clock(store.backend, store.keys.root) if dead else 0.0
    gone = [
        attempt
        for attempt in dead
        if now - entries[attempt].mtime > older_than and next(data_of(store, attempt), None) is None
    ]
    store.backend.delete([store.keys.commit(attempt) for attempt in gone])
    return gone


def _older(store: RunStore, attempt: Attempt, nonce: str, seconds: float) -> bool:
    """Whether something is in the folder, and nothing younger than that."""
    newest = max((info.mtime for info in data_of(store, attempt, nonce)), default=None)
    return newest is not None and clock(store.backend, store.keys.root) - newest >= seconds
