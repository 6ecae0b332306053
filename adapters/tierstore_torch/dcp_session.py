"""Which launch the saves of this process belong to, and which attempt comes next.

A launch is one life of a job. Writers come and go (often one per save) and travel to DCP's save
process, so what they share is here, once per process and run: a nonce that names this life, and
what it restored. The coordinator claims the launch at its first save; in DCP's save process it is
found again by the nonce that came with the writer.
"""

from __future__ import annotations

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
class Session:
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


_sessions: dict[Key, Session] = {}
_sessions_lock = threading.Lock()


def session_of(run: str, config: Config, life: Life | None = None) -> Session:
    """Return this process's session of a run.

    Args:
        run: the run.
        config: the ladder; its URLs tell sessions apart.
        life: in DCP's save process, the life of the trainer that sent the writer.
    """
    key = run, tuple(tier.url for tier in config.tiers)
    with _sessions_lock:
        session = _sessions.get(key)
        if session is None or (life is not None and session.life != life):
            life = life or Life(secrets.token_hex(8), None)
            session = _sessions[key] = Session(run, life)
        return session


def lives_of(config: Config) -> dict[str, Life]:
    """Return the lives of this process's sessions on a ladder, by run."""
    urls = tuple(tier.url for tier in config.tiers)
    with _sessions_lock:
        return {run: known.life for (run, at), known in _sessions.items() if at == urls}


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
