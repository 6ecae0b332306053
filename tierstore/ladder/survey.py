"""What the tiers of a ladder hold of a run, put together before any choice is made.

So a tier that missed a launch does not bring back an abandoned line, and one damaged record falls
back to what the other tiers say. All tiers are asked at once, and one that does not answer soon is
an error of its own: the others do not wait for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tierstore.backend import Backend
from tierstore.checkpoint.holdings import Holdings, holdings
from tierstore.checkpoint.store import RunStore
from tierstore.checkpoint.timeline import Launch, timeline
from tierstore.errors import TierstoreError, UnreachableError
from tierstore.keys import AttemptId, LaunchId, check_run
from tierstore.ladder.tiers import OpenTier
from tierstore.logs import logger
from tierstore.wrappers.delegate import Call, Delegate
from tierstore.wrappers.retry import impatient
from tierstore.wrappers.stop import refusal

T = TypeVar("T")
_log = logger(__name__)

_RETRY_SECONDS = 5.0
_SILENCE_SECONDS = 15.0
"""Without any answer of a tier; connections have 5 s to open."""


@dataclass(slots=True)
class Survey:
    """What the tiers hold of a run.

    Attributes:
        tiers: what each tier holds, in the order of the ladder, without those of `errors`.
        errors: the tiers that could not be listed.
        everything: all tiers together.
        timeline: the checkpoints that lead to the newest launch, newest first.
    """

    tiers: dict[str, Holdings]
    errors: dict[str, TierstoreError]
    everything: Holdings = field(default_factory=Holdings)
    timeline: list[AttemptId] = field(default_factory=list)

    def __post_init__(self) -> None:
        for held in self.tiers.values():
            self.everything.add(held)
        self.timeline = self.everything.timeline

    @property
    def launches(self) -> dict[LaunchId, Launch]:
        """What is known of launches."""
        return self.everything.launches

    @property
    def began(self) -> list[float]:
        """When the launches began of which something is known."""
        return [launch.started for launch in self.launches.values()]

    def line(self, step: int | None = None, without: Collection[AttemptId] = ()) -> list[AttemptId]:
        """Return what a restore may choose, newest first.

        Args:
            step: this step only. If the timeline has none of it, that is the newest one of an
                abandoned line: who names a step wants it.
            without: what counts as not there.
        """
        saved = self.everything.saved.difference(without)
        line = timeline(self.launches, saved) if without else self.timeline
        if step is None:
            return line
        own = [each for each in line if each.step == step]
        return own or timeline(self.launches, (each for each in saved if each.step == step))[:1]

    def holders(self, this: AttemptId) -> list[str]:
        """The tiers, in order, on which an attempt is alive."""
        return [tier for tier, held in self.tiers.items() if this in held.saved]

    def rivals(self) -> list[tuple[LaunchId, ...]]:
        """The launches that share a number, because one did not see the other's claim."""
        by_number: dict[int, set[LaunchId]] = {}
        for launch in {*self.launches, *(this.launch for this in self.everything.saved)}:
            by_number.setdefault(launch.number, set()).add(launch)
        return [tuple(sorted(ids)) for _, ids in sorted(by_number.items()) if len(ids) > 1]

    def idle(self) -> list[Launch]:
        """The launches newer than the newest checkpoint's that saved nothing, in order."""
        if not self.timeline:
            return []
        newest = self.launches.get(self.timeline[0].launch)
        since = newest.started if newest else 0.0
        with_commits = {this.launch for this in self.everything.saved}
        late = [each for each in self.launches.values() if each.started > since]
        return sorted(
            (each for each in late if each.id not in with_commits), key=lambda each: each.started
        )


def survey(tiers: Sequence[OpenTier], run: str, *, patient: bool = False) -> Survey:
    """List every tier, after committing what is complete there and newer than its commits.

    A tier that fails is recorded, not raised.

    Args:
        tiers: the ladder.
        run: the run.
        patient: repeat what fails for as long as each tier's policy says, and wait for a silent
            tier as long as its deadlines do. Otherwise a tier has a few seconds to answer.

    Raises:
        InvalidKeyError: `run` is no name of a run.
    """
    check_run(run)
    outcomes = ask(tiers, run, lambda store: holdings(store, commit_complete=True), patient=patient)
    seen = Survey(
        {name: held for name, held in outcomes.items() if isinstance(held, Holdings)},
        {name: error for name, error in outcomes.items() if isinstance(error, TierstoreError)},
    )
    for rivals in seen.rivals():
        nonces = " and ".join(launch.nonce or "unknown" for launch in rivals)
        _log.warning(
            "run %s: launches %s have one number, %d, because one could not see the other; the "
            "one that began later is the newer",
            *(run, nonces, rivals[0].number),
        )
    return seen


def ask(
    tiers: Sequence[OpenTier], run: str, what: Callable[[RunStore], T], *, patient: bool = False
) -> dict[str, T | TierstoreError]:
    """Ask every tier at once, and return by name what it answered, or why it did not.

    Args:
        tiers: whom; names differ.
        run: the run.
        what: asks one tier, in a thread of its own; it may go on after this has returned.
        patient: see `survey`.

    Raises:
        Exception: what is no error of a tier.
    """
    asked = [_Asked(tier, run, what, patient=patient) for tier in tiers]
    return {each.tier.name: each.wait() for each in asked}


class _Asked(Generic[T]):
    """One tier is asked, in a thread that nobody waits for longer than it gets answers."""

    def __init__(
        self, tier: OpenTier, run: str, what: Callable[[RunStore], T], *, patient: bool
    ) -> None:
        self.tier = tier
        self._what = what
        self._patient = patient
        self._outcome: list[T] = []
        self._error: BaseException | None = None
        backend = tier.backend if patient else impatient(tier.backend, _RETRY_SECONDS)
        self._answers = _Answers(backend)
        self._thread = threading.Thread(
            target=self._run, args=(run,), name=f"tierstore-{tier.name}-look", daemon=True
        )
        self._thread.start()

    def wait(self) -> T | TierstoreError:
        """Return what the tier answered, or why it did not.

        Raises:
            Exception: what is no error of the tier.
        """
        while self._thread.is_alive():
            left = self._answers.last + _SILENCE_SECONDS - time.monotonic()
            if left <= 0 and not self._patient:
                self._answers.given_up = True
                return UnreachableError(
                    f"no answer for {_SILENCE_SECONDS:g} s", url=self.tier.backend.url
                )
            self._thread.join(max(left, 0.1))
        if self._error is None:
            return self._outcome[0]
        if isinstance(self._error, TierstoreError):
            return self._error
        raise self._error

    def _run(self, run: str) -> None:
        try:
            self._outcome.append(self._what(RunStore(self._answers, run)))
        except BaseException as error:
            self._error = error


class _Answers(Delegate):
    """Knows when the backend last answered, and asks nothing more once nobody waits for it."""

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.last = time.monotonic()
        self.given_up = False

    def around(self, call: Call, run: Callable[[], T]) -> T:
        """Take note of an answer."""
        del call
        if self.given_up:
            raise refusal()
        result = run()
        self.last = time.monotonic()
        return result
