"""The slowest of n ranks.

What a rank takes is its median times a lognormal factor: exp(sigma Z), Z standard normal. The
slowest of n independent ones is below x with probability F(x)^n (H. A. David, H. N. Nagaraja,
*Order Statistics*, 3rd edition, Wiley 2003, section 2.1), so its quantile p is the quantile
p^(1/n) of one rank: exact, with no approximation for large n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, median

from tierstore.errors import ModelError
from tierstore.model.checks import not_negative, whole

_NORMAL = NormalDist()
_LONGEST = 100.0  # e^100 times the median is never, and still a number
_MAD_TO_SIGMA = 1.4826  # of a normal distribution: 1 / its 75 % quantile


def slowest(ranks: int, sigma: float, quantile: float = 0.5) -> float:
    """Return by which factor the slowest of `ranks` exceeds the median rank.

    Args:
        ranks: n, at least 1.
        sigma: standard deviation of the logarithm of one rank's time, from 0 up.
        quantile: 0.5 for the median of the slowest; 0.99 for what one save in a hundred exceeds.

    Raises:
        ModelError: a number is outside of its domain.
    """
    whole("number of ranks", ranks)
    not_negative("spread sigma", sigma)
    if not 0 < quantile < 1:
        raise ModelError(f"quantile is {quantile}, not between 0 and 1")
    return slowest_at(quantile, ranks, sigma)


def slowest_at(quantile: float, ranks: int, sigma: float) -> float:
    """Return the same unchecked, for many draws: a quantile above 0, and up to 1."""
    above = -math.expm1(math.log(quantile) / ranks)  # 1 - p^(1/n), exact for large n too
    return math.exp(min(_LONGEST, -sigma * _NORMAL.inv_cdf(max(above, 1e-300))))


def spread(seconds: Sequence[float]) -> float:
    """Return sigma of lognormal times, robustly: from the median absolute deviation of their logs.

    Raises:
        ModelError: there are fewer than two, or one is not above 0.
    """
    if len(seconds) < 2:
        raise ModelError(
            f"{len(seconds)} times say nothing about their spread", hint="measure at least two"
        )
    if min(seconds) <= 0:
        raise ModelError(f"a time of {min(seconds)} s is not above 0")
    logs = [math.log(each) for each in seconds]
    middle = median(logs)
    return _MAD_TO_SIGMA * median(abs(each - middle) for each in logs)
