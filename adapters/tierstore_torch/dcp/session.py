"""Which launch the saves of this process belong to, and which attempt comes next.

A launch is one life of a job. Writers come and go (often one per save) and travel to DCP's save
process, so what they share is here, once per process and run: a nonce that names this life, and
what it restored. The coordinator claims the launch at its first save; in DCP's save process it is
found again by the nonce that came with the writer.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from tierstore.checkpoint.store import RunStore
from tierstore.checkpoint.timeline import Launch, next_try
from tierstore.config import Config
from tierstore.keys import Attempt, AttemptId, RunKeys
from tierstore.ladder.claim import claim, launch_after, survey_all, warn_anew
from tierstore.ladder.tiers import OpenTier

Key = tuple[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Life:
    """What identifies a launch before it has a number. Small, picklable.

    Attributes:
        nonce: 16 hexadecimal digits.
        parent: the attempt that was restored; None for a line of its own.
    """

    nonce: str
    parent: AttemptId | None


@dataclass(slots=True)
class RunSession:
    """One life of a job in one process, for one run on one ladder."""

    run: str
    life: Life
    launch: Launch | None = None
    head: int | None = None
    _tried: set[Attempt] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def goes_to(self, step: int) -> None:
        """Note the step of a save that begins. Going back without a load is a line of its own."""
        with self._lock:
            if self.head is not None and step < self.head:
                self._renew(None)
            self.head = step

    def begin(
        self, tiers: Sequence[OpenTier], step: int, world_size: int
    ) -> tuple[Launch, Attempt]:
        """Return the launch and the attempt of a new save; on the coordinator.

        Raises:
            StorageError: a tier cannot be listed, so a number might be used twice.
            CheckpointError: no launch could be claimed.
        """
        with self._lock:
            if self.launch is None:
                self.launch = self._claim(tiers, step, world_size)
            known = {*self._tried, *_tries(tiers, self.run, step, self.launch)}
            attempt = next_try(known, step, self.launch.number)
            self._tried.add(attempt)
            return self.launch, attempt

    def restored(self, loaded: AttemptId) -> None:
        """Note what was loaded: saves go on from there.

        After saves of its own that is a new launch, unless it is the last of them that was loaded:
        a rollback from step 200 to 50 must not leave 200 the newest.
        """
        with self._lock:
            if loaded.nonce == self.life.nonce and loaded.step == self.head:
                return
            self._renew(loaded)

    def _renew(self, parent: AttemptId | None) -> None:
        self.life = Life(secrets.token_hex(8), parent)
        self.launch, self.head = None, None
        self._tried.clear()

    def _claim(self, tiers: Sequence[OpenTier], step: int, world_size: int) -> Launch:
        """Find this life's launch again, unless the save goes back, or claim a new one."""
        seen = survey_all(tiers, self.run)
        own = {launch for launch in seen.launches.values() if launch.nonce == self.life.nonce}
        ids = {launch.id for launch in own}
        if any(this.launch in ids and this.step > step for this in seen.everything.saved):
            self._renew(None)
            self.head = step
        elif own:
            return max(own, key=lambda launch: launch.number)
        if self.life.parent is None:
            warn_anew(self.run, [this.step for this in seen.timeline[:1]])
        launch = launch_after(seen, self.life.nonce, self.life.parent, world_size)
        return claim([RunStore(tier.backend, self.run) for tier in tiers], launch)


_sessions: dict[Key, RunSession] = {}
_loaded: dict[Key, AttemptId] = {}  # what saves go on from; the latest comes last
_sessions_lock = threading.Lock()


def session_of(run: str, config: Config, life: Life | None = None) -> RunSession:
    """Return this process's session of a run.

    Args:
        run: the run.
        config: the ladder; its URLs tell sessions apart.
        life: in DCP's save process, the life of the trainer that sent the writer.
    """
    key = _key(run, config)
    with _sessions_lock:
        session = _sessions.get(key)
        if session is None or (life is not None and session.life != life):
            parents = [loaded for at, loaded in _loaded.items() if _meet(at, key)]
            life = life or Life(secrets.token_hex(8), parents[-1] if parents else None)
            session = _sessions[key] = RunSession(run, life)
        return session


def note_loaded(run: str, config: Config, loaded: AttemptId) -> None:
    """Let this process's saves of a run go on from what was loaded.

    Those are the saves to every ladder that has a tier of the one that was loaded from.
    """
    key = _key(run, config)
    with _sessions_lock:
        _loaded.pop(key, None)
        _loaded[key] = loaded
        sessions = [session for at, session in _sessions.items() if _meet(at, key)]
    for session in sessions:
        session.restored(loaded)


def lives_of(config: Config) -> dict[str, Life]:
    """Return the lives of this process's sessions on a ladder, by run."""
    with _sessions_lock:
        runs = {at[0] for at in _sessions if at == _key(at[0], config)}
        runs |= {at[0] for at in _loaded if _meet(at, _key(at[0], config))}
    return {run: session_of(run, config).life for run in runs}


def _key(run: str, config: Config) -> Key:
    return run, tuple(tier.url for tier in config.tiers)


def _meet(one: Key, other: Key) -> bool:
    """Whether two ladders hold one run: they have a tier in common."""
    return one[0] == other[0] and not {*one[1]}.isdisjoint(other[1])


def _in_child() -> None:
    """Let a forked child be another life of the job: two that count alike write the same files."""
    global _sessions_lock  # noqa: PLW0603 - the fork may have copied it locked
    _sessions_lock = threading.Lock()
    _sessions.clear()


os.register_at_fork(after_in_child=_in_child)


def _tries(tiers: Sequence[OpenTier], run: str, step: int, launch: Launch) -> set[Attempt]:
    """Return every attempt of a step and launch that left a trace on some tier."""
    keys = RunKeys(run)
    stem = str(Attempt(step, launch.number, 0))[:-2]  # without the try
    found: set[Attempt] = set()
    for tier in tiers:
        for info in tier.backend.list(f"{keys.commits}{stem}"):
            if attempt := keys.parse_commit(info.key):
                found.add(attempt)
        for info in tier.backend.list(f"{keys.data}{stem}", delimiter=True):
            if parsed := keys.parse_data(info.key):
                found.add(parsed[0])
    return found
