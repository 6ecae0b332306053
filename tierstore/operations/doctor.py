"""Whether every tier can do what a save needs of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tierstore.backend import Check
from tierstore.operations.tiers import configured

if TYPE_CHECKING:
    from tierstore.operations.tiers import Ladder

__all__ = ["STAGING", "Check", "Examined", "ExaminedTier", "Hears", "examine"]

STAGING = "staging memory"
"""What takes a tier's place for the memory of this machine; no tier can have this name."""

Hears = Callable[[str, str], Callable[[Check], None]]
"""Told the name and the URL of a tier that is looked at; returns what is told each finding."""


@dataclass(frozen=True, slots=True)
class ExaminedTier:
    """What was found on one tier.

    Attributes:
        url: where it is.
        checks: the findings, in the order in which they were made.
    """

    url: str
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found on a ladder.

    Attributes:
        tiers: the findings of each tier, by its name.
        staging: those of the memory of this machine in which trainers stage.
    """

    tiers: Mapping[str, ExaminedTier]
    staging: ExaminedTier

    @property
    def good(self) -> bool:
        """Whether no check failed."""
        every = (check for part in (*self.tiers.values(), self.staging) for check in part.checks)
        return all(check.outcome != "failed" for check in every)

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            name: {"url": tier.url, "checks": [asdict(check) for check in tier.checks]}
            for name, tier in {**self.tiers, STAGING: self.staging}.items()
        }


def _silent(_name: str, _url: str) -> Callable[[Check], None]:
    return lambda _check: None


def examine(ladder: Ladder = None, *, hears: Hears = _silent) -> Examined:
    """Check each tier: reachable, writable, conditional create, checksums, clock, disk.

    After them, whether what is staged on this machine survives its trainer.

    Writes and deletes a few small objects below doctor/ on every tier.

    Args:
        ladder: a configuration, URLs or open tiers, which are opened once more, without retries.
        hears: told each finding at once: a server that does not answer takes its time.

    Raises:
        ConfigError: the configuration is wrong.
    """
    from tierstore.backends.images import ImagesBackend
    from tierstore.ladder.diagnosis import diagnose
    from tierstore.ladder.staging_memory import diagnose_staging

    def look(name: str, url: str, checks: Iterable[Check]) -> ExaminedTier:
        tell, found = hears(name, url), []
        for check in checks:
            tell(check)
            found.append(check)
        return ExaminedTier(url, tuple(found))

    tiers = {tier.name: look(tier.name, tier.url, diagnose(tier)) for tier in configured(ladder)}
    images = ImagesBackend()
    return Examined(tiers, look(STAGING, f"file://{images.directory}", diagnose_staging(images)))
