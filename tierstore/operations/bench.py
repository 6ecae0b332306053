"""How fast each tier is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tierstore.errors import ModelError, TierstoreError
from tierstore.model.bench import (
    Limits,
    Schedule,
    copy_rate,
    describe_machine,
    measure,
    schedule,
)
from tierstore.model.fit import Fit, left_out, require_scipy
from tierstore.model.points import Measured, TierPoints
from tierstore.model.probe import Cell
from tierstore.operations.tiers import configured
from tierstore.registry import open_backend

if TYPE_CHECKING:
    from tierstore.config import TierConfig
    from tierstore.operations.tiers import Ladder

__all__ = [
    "Bench",
    "BenchPlan",
    "BenchProgress",
    "Cell",
    "Failures",
    "FittedLaw",
    "Limits",
    "Measured",
    "TierPoints",
    "bench",
    "bench_plan",
]

FITTED = ("put", "write", "commit", "read", "list")
"""What is fitted: "write" and "commit" are the parts of a put, "read" is get and range."""
Failures = tuple[tuple[str, TierstoreError], ...]
"""The tiers where it failed, each with its error."""
BenchProgress = Callable[[str, Cell | None, int, int], None]
"""Told the tier, the cell to come (None while preparing), rounds done, and how many there may be.
"""


@dataclass(frozen=True, slots=True)
class FittedLaw:
    """What was fitted of one operation.

    Attributes:
        fit: the law, and how far it can be believed.
        left_out: its error on points that it was not fitted to; None if there are too few points.
        peak: requests in flight at which it is fastest, among those that were measured.
    """

    fit: Fit
    left_out: float | None
    peak: float

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {**asdict(self.fit), "left_out": self.left_out, "peak": self.peak}


@dataclass(frozen=True, slots=True)
class Bench:
    """What was measured.

    Attributes:
        measured: the points; its JSON is what predictions read.
        fits: tier -> operation -> what was fitted, or why nothing was.
        failed: the tiers that could not be measured.
    """

    measured: Measured
    fits: Mapping[str, Mapping[str, FittedLaw | ModelError]]
    failed: Failures = ()

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        fits = {
            tier: {
                name: {"error": str(law)} if isinstance(law, ModelError) else law.to_json()
                for name, law in laws.items()
            }
            for tier, laws in self.fits.items()
        }
        return {**self.measured.to_json(), "fits": fits}


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """What would be measured on one tier.

    Attributes:
        tier: its name.
        where: the URL below which it writes.
        schedule: the sizes and the requests in flight.
        limits: how much at most.
    """

    tier: str
    where: str
    schedule: Schedule
    limits: Limits

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "tier": self.tier,
            "where": self.where,
            "sizes": self.schedule.sizes,
            "concurrency": sorted({cell.concurrency for cell in self.schedule.cells}),
            "kept_bytes": self.schedule.kept,
            "moved_bytes": int(self.limits.nbytes),
            "seconds": self.limits.seconds,
        }


def bench(
    ladder: Ladder = None,
    limits: Limits | None = None,
    *,
    progress: BenchProgress | None = None,
) -> Bench:
    """Measure each tier: sizes x concurrency x put, get, range, first byte and list.

    Writes objects below bench/ on every tier, verifies what it reads, and deletes all of it again,
    also when it is interrupted.

    Args:
        ladder: a configuration, URLs or open tiers, which are opened once more.
        limits: how much is measured on each tier.
        progress: hears how far it is.

    Raises:
        ConfigError: the configuration is wrong.
        ModelError: scipy is missing.
    """
    tiers = configured(ladder)
    require_scipy()
    done: list[TierPoints] = []
    failed: list[tuple[str, TierstoreError]] = []
    for tier in tiers:
        try:
            heard = partial(progress, tier.name) if progress else None
            done.append(measure(tier, limits or Limits(), heard))
        except TierstoreError as error:
            failed.append((tier.name, error))
    measured = Measured(describe_machine(), copy_rate(), tuple(done))
    return Bench(measured, {tier.name: _fitted(tier) for tier in done}, tuple(failed))


def bench_plan(
    ladder: Ladder = None, limits: Limits | None = None
) -> tuple[tuple[BenchPlan, ...], Failures]:
    """Return what `bench` would do on each tier, and on which it would fail; nothing is written.

    Args:
        ladder: as in `bench`.
        limits: as in `bench`.

    Raises:
        ConfigError: the configuration is wrong.
        ModelError: scipy is missing.
    """
    tiers = configured(ladder)
    require_scipy()
    plans: list[BenchPlan] = []
    failed: list[tuple[str, TierstoreError]] = []
    for tier in tiers:
        try:
            plans.append(_planned(tier, limits or Limits()))
        except TierstoreError as error:
            failed.append((tier.name, error))
    return tuple(plans), tuple(failed)


def _planned(tier: TierConfig, limits: Limits) -> BenchPlan:
    with closing(open_backend(tier.url, tier.options)) as backend:
        found = schedule(tier, backend.capabilities, limits)
    return BenchPlan(tier.name, f"{tier.url}/bench/", found, limits)


def _fitted(tier: TierPoints) -> dict[str, FittedLaw | ModelError]:
    found: dict[str, FittedLaw | ModelError] = {}
    for operation in FITTED:
        try:
            fit = tier.fit(operation)
        except ModelError as error:
            found[operation] = error
        else:
            peak = min(fit.curve.at_size(fit.most[1]).peak, fit.most[2])
            found[operation] = FittedLaw(fit, left_out(tier.samples(operation)), peak)
    return found
