"""The calibrated model of one operation, from measured points.

Robust least squares on the logarithm of predicted over measured time, which for small errors is the
relative error: a point of 1 ms counts as much as one of 1 s, and one that is far off (a disk that
ran out of its budget) counts less. Intervals are from the covariance at the solution, with
Student's t; a number that lies on the edge of its domain has that edge as its interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tierstore.errors import ModelError
from tierstore.model.curve import Curve
from tierstore.model.tail import spread

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult

Vector = npt.NDArray[np.float64]

_NAMES = (
    "latency",
    "per_byte",
    "latency_contention",
    "latency_coherence",
    "contention",
    "coherence",
)
_LOGS = 2  # the first two are fitted by their logarithm
_LOWEST = (math.log(1e-9), math.log(1e-18), 0.0, 0.0, 0.0, 0.0)
_HIGHEST = (math.log(1e4), math.log(1.0), 4.0, 1.0, 4.0, 1.0)
_STARTS = (0.05, 0.5, 0.95)  # of the contention
_OUTLIER = 0.15  # a relative error from which a point counts less
_CERTAIN = 0.05  # no point is believed to be better than this
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured point of one operation.

    Attributes:
        nbytes: of a request; keys, of a listing.
        concurrency: requests in flight.
        seconds: of one request.
        uncertainty: relative standard error of it; an uncertain point counts less.
    """

    nbytes: float
    concurrency: float
    seconds: float
    uncertainty: float = 0.0


@dataclass(frozen=True, slots=True)
class Fit:
    """What was fitted, and how far it can be believed.

    Attributes:
        curve: the model.
        intervals: name of each number of the curve -> its 95 % interval.
        points: how many it was fitted to.
        error: median absolute relative error on them.
        sigma: spread of the logarithm of measured over predicted time.
        most: (smallest size, largest size, most in flight) that was measured.
    """

    curve: Curve
    intervals: dict[str, tuple[float, float]]
    points: int
    error: float
    sigma: float
    most: tuple[float, float, float]


def require_scipy() -> None:
    """Raise now what a fit would raise after minutes of measuring.

    Raises:
        ModelError: scipy is missing.
    """
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        raise ModelError(
            "fitting the storage-time model needs scipy", hint="pip install 'tierstore[model]'"
        ) from None


def fit(samples: Sequence[Sample]) -> Fit:
    """Fit the calibrated model to measured points.

    Coherence needs three concurrencies; of two only the contention is fitted.

    Args:
        samples: at least two sizes, two concurrencies, and one point more than there are numbers
            to fit (6; 4 with two concurrencies).

    Raises:
        ModelError: points are missing, or one is no measurement; scipy is missing.
    """
    require_scipy()
    free = _check(samples)
    curve, intervals = _solve(samples, free)
    errors = relative_errors(curve, samples)
    ratios = [s.seconds / curve.seconds(s.nbytes, s.concurrency) for s in samples]
    sizes = [s.nbytes for s in samples]
    return Fit(
        curve,
        intervals,
        len(samples),
        median(map(abs, errors)),
        spread(ratios),
        (min(sizes), max(sizes), max(s.concurrency for s in samples)),
    )


def relative_errors(curve: Curve, samples: Sequence[Sample]) -> list[float]:
    """Return predicted over measured time, less 1, of each point."""
    return [curve.seconds(s.nbytes, s.concurrency) / s.seconds - 1 for s in samples]


def _check(samples: Sequence[Sample]) -> list[int]:
    """Return the indices of the numbers that these points determine."""
    for sample in samples:
        for what, value, least in (
            ("size", sample.nbytes, 0.0),
            ("concurrency", sample.concurrency, 1.0),
            ("time", sample.seconds, 0.0),
        ):
            if not (math.isfinite(value) and value >= least and (value > 0 or what == "size")):
                raise ModelError(f"{sample} is no measurement: its {what} is {value}")
    sizes, together = ({s.nbytes for s in samples}, {s.concurrency for s in samples})
    if len(samples) < 2:
        raise ModelError(
            f"{len(samples) or 'no'} measured point{'s' * (not samples)}: nothing can be fitted",
            hint="measure at least two sizes, each at two concurrencies or more",
        )
    for what, found in (("size", sizes), ("concurrency", together)):
        if len(found) < 2:
            raise ModelError(
                f"all {len(samples)} points have the {what} {found.pop():g}",
                hint=f"measure a second {what}, so that its effect can be seen",
            )
    free = [0, 1, 2, 4] if len(together) == 2 else [*range(len(_NAMES))]
    if len(samples) <= len(free):
        raise ModelError(
            f"{len(samples)} points do not determine {len(free)} numbers",
            hint=f"measure at least {len(free) + 1} pairs of size and concurrency",
        )
    return free


def _solve(
    samples: Sequence[Sample], free: list[int]
) -> tuple[Curve, dict[str, tuple[float, float]]]:
    from scipy.optimize import least_squares

    nbytes, together, seconds, uncertain = (
        np.array([getattr(s, name) for s in samples], np.float64)
        for name in ("nbytes", "concurrency", "seconds", "uncertainty")
    )
    measured = np.log(seconds)
    weight = _CERTAIN / np.hypot(_CERTAIN, uncertain)

    def residuals(numbers: Vector) -> Vector:
        return (np.log(_curve(numbers, free).times(nbytes, together)) - measured) * weight

    bounds = [_LOWEST[i] for i in free], [_HIGHEST[i] for i in free]
    solved = [
        least_squares(
            residuals, start, bounds=bounds, loss="soft_l1", f_scale=_OUTLIER, x_scale="jac"
        )
        for start in _starts(samples, free)
    ]
    best = min(solved, key=lambda each: float(each.cost))
    return _curve(best.x, free), _intervals(best, free, len(samples))


def _curve(numbers: Vector, free: list[int]) -> Curve:
    found = dict.fromkeys(_NAMES, 0.0)
    for index, number in zip(free, numbers, strict=True):
        found[_NAMES[index]] = math.exp(number) if index < _LOGS else float(number)
    return Curve(**found)


def _starts(samples: Sequence[Sample], free: list[int]) -> Iterator[list[float]]:
    """Yield guesses: latency from the fastest point, the rate from the largest requests."""
    large = max(s.nbytes for s in samples)
    latency = min(s.seconds for s in samples) * 0.8
    moved = median(s.seconds / s.concurrency for s in samples if s.nbytes == large)
    guess = [latency, max(moved / max(large, 1.0), 1e-17)]
    for contention in _STARTS:
        whole = [*map(math.log, guess), 0.05, 1e-3, contention, 1e-3]
        clipped = np.clip(whole, np.add(_LOWEST, 1e-6), np.subtract(_HIGHEST, 1e-6))
        yield [float(clipped[i]) for i in free]


def _intervals(
    solved: OptimizeResult, free: list[int], points: int
) -> dict[str, tuple[float, float]]:
    from scipy.stats import t

    inside = [k for k, active in enumerate(solved.active_mask) if not active]
    jacobian = solved.jac[:, inside]
    variance = 2 * solved.cost / max(1, points - len(inside))
    covariance = np.linalg.pinv(jacobian.T @ jacobian) * variance
    wide = t.ppf((1 + _CONFIDENCE) / 2, max(1, points - len(inside)))
    margins = dict.fromkeys(range(len(free)), 0.0)
    variances = np.maximum(np.diag(covariance), 0.0)  # rounding may leave less than nothing
    margins |= dict(zip(inside, wide * np.sqrt(variances), strict=True))
    found = {}
    for k, index in enumerate(free):
        low = max(_LOWEST[index], solved.x[k] - margins[k])
        high = min(_HIGHEST[index], solved.x[k] + margins[k])
        scale: Callable[[float], float] = math.exp if index < _LOGS else float
        found[_NAMES[index]] = scale(low), scale(high)
    return found


def left_out(samples: Sequence[Sample]) -> float | None:
    """Return the median absolute relative error on points that were left out of the fit.

    Each size, then each concurrency, that lies between others is left out and predicted from the
    rest. None where the rest never determines the model.
    """
    errors: list[float] = []
    for name in ("nbytes", "concurrency"):
        for value in sorted({getattr(s, name) for s in samples})[1:-1]:
            kept = [s for s in samples if getattr(s, name) != value]
            try:
                curve, _ = _solve(kept, _check(kept))
            except ModelError:
                continue  # the rest does not determine the model
            gone = [s for s in samples if getattr(s, name) == value]
            errors += map(abs, relative_errors(curve, gone))
    return median(errors) if errors else None
