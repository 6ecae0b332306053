"""Whether every tier can do what a save needs of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tierstore.backend import Check
from tierstore.operations.tiers import configured

if TYPE_CHECKING:
    from tierstore.operations.tiers import Ladder

__all__ = ["Check", "Examined", "ExaminedTier", "Hears", "examine"]

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
    """What was found on a ladder: the findings of each tier, by its name."""

    tiers: Mapping[str, ExaminedTier]

    @property
    def good(self) -> bool:
        """Whether no check failed."""
        every = (check for tier in self.tiers.values() for check in tier.checks)
        return all(check.outcome != "failed" for check in every)

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            name: {"url": tier.url, "checks": [asdict(check) for check in tier.checks]}
            for name, tier in self.tiers.items()
        }


def _silent(_name: str, _url: str) -> Callable[[Check], None]:
    return lambda _check: None


def examine(ladder: Ladder = None, *, hears: Hears = _silent) -> Examined:
    """Check each tier: reachable, writable, conditional create, checksums, clock, disk.

    Writes and deletes a few small objects below doctor/ on every tier.

    Args:
        ladder: a configuration, URLs or open tiers, which are opened once more, without retries.
        hears: told each finding at once: a server that does not answer takes its time.

    Raises:
        ConfigError: the configuration is wrong.
    """
    from tierstore.ladder.diagnosis import diagnose

    found = {}
    for tier in configured(ladder):
        tell, checks = hears(tier.name, tier.url), []
        for check in diagnose(tier):
            tell(check)
            checks.append(check)
        found[tier.name] = ExaminedTier(tier.url, tuple(checks))
    return Examined(found)
