"""A save on its way, as the caller sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tierstore.keys import Attempt, AttemptKeys
from tierstore.ladder.handle import SaveHandle, TierStatus


@dataclass(frozen=True, slots=True)
class Save:
    """One save. It goes on by itself; nothing here has to be called.

    Attributes:
        stall: seconds that `Checkpointer.save` kept the trainer.
        bytes: of tensors that this rank writes.
    """

    stall: float
    bytes: int
    _handle: SaveHandle
    _places: dict[str, str]  # tier name -> URL
    _keys: AttemptKeys

    @property
    def attempt(self) -> Attempt:
        """Step, launch and try: the checkpoint's identity."""
        return self._handle.attempt

    @property
    def step(self) -> int:
        """The step."""
        return self._handle.attempt.step

    @property
    def done(self) -> bool:
        """Whether every tier is committed, failed, behind or skipped."""
        return self._handle.done

    @property
    def failed(self) -> dict[str, BaseException]:
        """The errors of the tiers that failed or were too far behind, until they catch up."""
        return self._handle.failed

    def wait(
        self,
        tier: str | None = None,
        timeout: float | None = None,
        *,
        until: Literal["written", "committed"] = "committed",
    ) -> None:
        """Wait until the checkpoint is durable on a tier, or on all that this step goes to.

        Args:
            tier: the tier's name, or None for all.
            timeout: seconds; None for as long as the tiers' own deadlines allow.
            until: "committed": the checkpoint exists there, whole. "written": this rank's part is
                there.

        Raises:
            DeadlineError: `timeout` passed; the save goes on.
            CheckpointError: the save does not go to this tier, or the tier was too far behind.
            TierstoreError: what the save failed with. A tier that failed or was behind may get it
                later; it then succeeds.
        """
        self._handle.wait(tier, timeout, until=until)

    def status(self) -> dict[str, TierStatus]:
        """Return how far it is on each tier, in the order of the ladder."""
        return self._handle.status()

    def report(self) -> list[dict[str, Any]]:
        """Return one JSON-able row a tier: tier, state, seconds, bytes, gb_per_s, where, error."""
        return [
            {
                "tier": name,
                "state": str(status.state),
                "seconds": status.seconds + status.commit_seconds,
                "bytes": status.nbytes,
                "gb_per_s": status.gb_per_s,
                "where": f"{self._places[name].rstrip('/')}/{self._keys.root}",
                "error": None if status.error is None else str(status.error),
            }
            for name, status in self.status().items()
        ]
