"""Deleting checkpoints. Nobody else writes a tombstone, or deletes what a commit relies on.

The order is always: tombstone at the commit's key, grace for readers, then the data. Whoever finds
a tombstone and data carries on from there, so being killed in between loses nothing. A commit's key
is never freed while a slow writer could still use it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator

from tierstore import waiting
from tierstore.backend import Backend, ObjectInfo
from tierstore.checkpoint import GRACE
from tierstore.checkpoint.commit import tombstone
from tierstore.checkpoint.store import RunStore
from tierstore.checkpoint.tombstone import is_buried
from tierstore.errors import CheckpointError, CheckpointNotFoundError, InvalidKeyError
from tierstore.keys import Attempt, parse_part


class Deletion:
    """Deletes checkpoints of one place, wherever in it their runs lie. Not for several threads.

    First `bury` all of them, then `remove` what they relied on.

    Args:
        backend: the place.
        grace: seconds that a tombstone is old before any data goes.
        sleep: how to wait.
    """

    def __init__(
        self, backend: Backend, *, grace: float, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._backend, self._grace, self._sleep = backend, grace, sleep
        self._known: set[str] = set()
        self._over = 0.0  # when the grace is over, by `time.monotonic`
        self._youngest: tuple[float, str] | None = None  # of those that others wrote

    def bury(self, key: str, *, if_absent: bool = False) -> None:
        """Put a tombstone at a commit's key: see `bury`."""
        bury(self._backend, key, if_absent=if_absent)
        self._known.add(key)
        self._over = time.monotonic() + self._grace

    def found(self, key: str, written: float) -> None:
        """Take note of a tombstone that was there already.

        Args:
            key: of the commit whose place it takes.
            written: when, as a listing has it.
        """
        if key not in self._known:
            self._known.add(key)
            self._youngest = max(self._youngest or (written, key), (written, key))

    def wait(self) -> None:
        """Give readers what is left of their time."""
        if self._youngest and self._grace and not self._over:  # else its own are younger
            written, key = self._youngest
            age = clock(self._backend, key.rpartition("commits/")[0]) - written
            self._over = time.monotonic() + self._grace - max(age, 0.0)
        left = self._over - time.monotonic()
        if left > 0:
            with grace_for_readers(left):
                self._sleep(left)
        self._youngest, self._over = None, 0.0

    def remove(self, keys: Iterable[str]) -> None:
        """Delete objects, of checkpoints or beside them, once all tombstones are old enough."""
        self.wait()
        self._backend.delete(keys)

    def remove_below(self, prefix: str) -> None:
        """Delete all data below a prefix; if there is none, nobody is waited for."""
        if next(self._backend.list(prefix), None) is not None:
            self.wait()
            self.remove([info.key for info in self._backend.list(prefix)])


def bury(backend: Backend, key: str, *, if_absent: bool = False) -> None:
    """Put a tombstone at a commit's key: the checkpoint is deleted, or will never be.

    Raises:
        AlreadyExistsError: something is there, and `if_absent` is set.
    """
    name = key.rpartition("/")[2].removesuffix(".json")
    backend.create(key, tombstone(Attempt.parse(name)), if_absent=if_absent)


def remove_data(backend: Backend, commit: str, check: Callable[[str], object]) -> None:
    """Delete all data of a tombstone; that its grace is over is for the caller to know.

    Args:
        backend: where it is.
        commit: the key of the tombstone.
        check: raises for a key that is not to be removed; then nothing is.

    Raises:
        CheckpointError: it is no tombstone.
    """
    part = parse_part(commit)
    if part is None or part.kind != "commits":
        raise InvalidKeyError(f"{commit!r} is not the key of a commit")
    if not is_buried(backend, commit):
        raise CheckpointError(f"{commit} is no tombstone, so its data stays")
    keys = [info.key for info in backend.list(part.group)]
    for key in keys:
        check(key)
    backend.delete(keys)


def is_relied_on(backend: Backend, key: str) -> bool:
    """Return whether an object is data of a checkpoint that is alive, so not to be removed."""
    part = parse_part(key)
    return part is not None and part.kind == "data" and not is_buried(backend, part.commit)


def grace_for_readers(seconds: float) -> waiting.Wait:
    """Return what tells, with `with`, that somebody gives them their time."""
    return waiting.on("readers of what was deleted", "grace", most=seconds)


def delete(
    store: RunStore,
    *attempts: Attempt,
    grace: float = GRACE,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Delete checkpoints of a tier: readers see them gone at once, their data goes after `grace`.

    Deleting what is deleted already carries on where the earlier call was cut off.

    Args:
        store: the run on a tier.
        attempts: what to delete.
        grace: seconds that readers have to finish.
        sleep: how to wait.

    Raises:
        CheckpointNotFoundError: one has no commit, so none was deleted; see `collect`.
    """
    entries = store.entries()
    for attempt in attempts:
        if attempt not in entries:
            raise CheckpointNotFoundError(
                f"{store.backend.url}: run {store.keys.run!r} has no commit of {attempt}"
            )
    deletion = Deletion(store.backend, grace=grace, sleep=sleep)
    for attempt in attempts:
        key, entry = store.keys.commit(attempt), entries[attempt]
        if not store.deleted(attempt, entry):
            deletion.bury(key)
        elif next(data_of(store, attempt), None) is not None:
            deletion.found(key, entry.mtime)
    for attempt in attempts:
        deletion.remove_below(store.keys.rivals(attempt))


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
    delete(store, attempt, grace=grace, sleep=sleep)


def clock(backend: Backend, root: str) -> float:
    """Return the time by the store's own clock, in seconds since 1970.

    Args:
        backend: the store.
        root: the prefix below which an object is written to ask, and removed.
    """
    key = f"{root}clock-{secrets.token_hex(8)}"
    backend.create(key, b"")
    try:
        # Listed, as are the ages it is compared with: S3's `stat` cuts to whole seconds.
        return next(backend.list(key)).mtime
    finally:
        backend.delete([key])


def data_of(store: RunStore, attempt: Attempt, nonce: str = "") -> Iterator[ObjectInfo]:
    """Everything under an attempt's folder, or its folders: rivals differ in the nonce."""
    return store.backend.list(f"{store.keys.rivals(attempt)}{nonce}")
