"""Deleting: checkpoints that someone wants gone, and attempts that never came to be.

The order is always: tombstone at the commit's key, grace for readers, then the data. Whoever finds
a tombstone and data carries on from there, so being killed in between loses nothing. A commit's key
is never freed while a slow writer could still use it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Literal

from tierstore.backend import ObjectInfo
from tierstore.checkpoint.store import RunStore
from tierstore.checkpoint.tombstone import bury
from tierstore.errors import (
    AlreadyExistsError,
    AttemptDeletedError,
    CheckpointError,
    CheckpointNotFoundError,
    IntegrityError,
    NewerFormatError,
)
from tierstore.keys import Attempt

Outcome = Literal["committed", "young", "alive", "collected"]


def delete(
    store: RunStore,
    attempt: Attempt,
    *,
    grace: float,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Delete a checkpoint: readers see it gone at once, its data goes after `grace`.

    Deleting what is deleted already carries on where the earlier call was cut off.

    Args:
        store: the run on a tier.
        attempt: what to delete.
        grace: seconds that readers have to finish.
        sleep: how to wait.

    Raises:
        CheckpointNotFoundError: there is no commit; see `collect`.
    """
    entry = store.entries().get(attempt)
    if entry is None:
        raise CheckpointNotFoundError(
            f"{store.backend.url}: run {store.keys.run!r} has no commit of {attempt}"
        )
    if not store.deleted(attempt, entry):
        bury(store.backend, store.keys.commit(attempt))
    sweep(store, attempt, grace=grace, sleep=sleep)


def sweep(
    store: RunStore,
    attempt: Attempt,
    *,
    grace: float,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Delete the data of an attempt whose commit is a tombstone, once it is `grace` seconds old.

    Raises:
        CheckpointError: its commit is alive or absent.
    """
    entry = store.entries().get(attempt)
    if entry is None or not store.deleted(attempt, entry):
        raise CheckpointError(f"{attempt} has no tombstone, so its data stays")
    if next(_data(store, attempt), None) is None:
        return
    wait = grace - (clock(store) - entry.mtime)
    if wait > 0:
        sleep(wait)
    store.backend.delete([info.key for info in _data(store, attempt)])


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
        store.backend.delete([info.key for info in _data(store, attempt, nonce)])
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
    now = clock(store) if dead else 0.0
    gone = [
        attempt
        for attempt in dead
        if now - entries[attempt].mtime > older_than and next(_data(store, attempt), None) is None
    ]
    store.backend.delete([store.keys.commit(attempt) for attempt in gone])
    return gone


def clock(store: RunStore) -> float:
    """Return the time by the store's own clock, in seconds since 1970; writes an object to ask."""
    store.backend.create(store.keys.clock, b"")
    # Listed, as are the ages it is compared with: S3's `stat` cuts to whole seconds.
    return next(store.backend.list(store.keys.clock)).mtime


def _data(store: RunStore, attempt: Attempt, nonce: str = "") -> Iterator[ObjectInfo]:
    """Everything under an attempt's folder, or its folders: rivals differ in the nonce."""
    return store.backend.list(f"{store.keys.rivals(attempt)}{nonce}")


def _older(store: RunStore, attempt: Attempt, nonce: str, seconds: float) -> bool:
    """Whether something is in the folder, and nothing younger than that."""
    newest = max((info.mtime for info in _data(store, attempt, nonce)), default=None)
    return newest is not None and clock(store) - newest >= seconds
