"""Policy around backends: each wrapper is a backend around a backend."""

from __future__ import annotations

from tierstore.config import TierConfig
from tierstore.registry import open_backend
from tierstore.wrappers.bandwidth import Throttled
from tierstore.wrappers.limit import Limited
from tierstore.wrappers.metrics import Metered, Tally
from tierstore.wrappers.retry import Retrying

__all__ = ["open_tier"]


def open_tier(tier: TierConfig) -> Metered:
    """Open a tier's backend with the tier's policy around it; the one place that stacks them.

    From the outside in: metrics see a request once with all its repetitions; each repetition takes
    its turn and its share of the bandwidth anew, and does not hold a turn while it pauses.

    Raises:
        ConfigError: the URL or an option is wrong.
    """
    policy, tally = tier.policy, Tally()
    backend = open_backend(tier.url, tier.options)
    if policy.read_bandwidth or policy.write_bandwidth:
        backend = Throttled(backend, read=policy.read_bandwidth, write=policy.write_bandwidth)
    backend = Limited(backend, policy.max_requests)
    backend = Retrying(backend, seconds=policy.retry_seconds, on_retry=tally.retried)
    return Metered(backend, tally)
