"""The ladder that an operation is about, open while it lasts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from tierstore.errors import ConfigError

if TYPE_CHECKING:
    from tierstore.config import Config, TierConfig
    from tierstore.ladder.tiers import OpenTier

    Source = Config | str | os.PathLike[str]
    Ladder = Source | Sequence[Source] | Sequence[OpenTier] | None
    """A configuration, its file, or URLs, fastest first; None for the default one. Tiers that are
    open already are used as they are, and stay open."""

PATIENCE = 5.0
"""Seconds that a request of somebody who waits for the answer is repeated."""


@contextmanager
def opened(
    ladder: Ladder, only: str | None = None, *, patience: float | None = PATIENCE
) -> Iterator[list[OpenTier]]:
    """Open a ladder, or one tier of it, and close it afterwards.

    Args:
        ladder: see `Ladder`.
        only: the one tier that is wanted.
        patience: seconds that a request is repeated at most; None for what each tier says.

    Raises:
        ConfigError: the configuration is wrong, or there is no such tier.
    """
    from tierstore.config import load_config
    from tierstore.ladder.tiers import close_ladder, open_ladder

    if is_open(ladder):
        tiers = cast("Sequence[OpenTier]", ladder)
        _check_named(only, [tier.name for tier in tiers])
        yield _only(tiers, only)
        return
    config = load_config(*_sources(ladder))
    _check_named(only, [tier.name for tier in config.tiers])
    if patience is not None:
        config = replace(config, tiers=tuple(hasty(tier, patience) for tier in config.tiers))
    tiers = open_ladder(config)
    try:
        yield _only(tiers, only)
    finally:
        close_ladder(tiers)


def configured(ladder: Ladder) -> tuple[TierConfig, ...]:
    """Return the tiers of a ladder, fastest first.

    Raises:
        ConfigError: the configuration is wrong.
    """
    from tierstore.config import load_config

    if is_open(ladder):
        return tuple(tier.config for tier in cast("Sequence[OpenTier]", ladder))
    return load_config(*_sources(ladder)).tiers


def hasty(tier: TierConfig, patience: float = PATIENCE) -> TierConfig:
    """Return a tier whose requests are not repeated for longer than a person waits.

    A save waits two minutes for a tier to come back; a person wants to know that it is away.
    """
    seconds = min(patience, tier.policy.retry_seconds)
    return replace(tier, policy=replace(tier.policy, retry_seconds=seconds))


def is_open(ladder: Ladder) -> bool:
    """Whether its tiers are open already."""
    from tierstore.ladder.tiers import OpenTier

    if isinstance(ladder, str) or not isinstance(ladder, Sequence) or not ladder:
        return False
    return all(isinstance(each, OpenTier) for each in ladder)


def _sources(ladder: Ladder) -> Sequence[Source]:
    if ladder is None:
        return ()
    if isinstance(ladder, Sequence) and not isinstance(ladder, str):
        return cast("Sequence[Source]", ladder)
    return (ladder,)


def _check_named(only: str | None, names: list[str]) -> None:
    if only is not None and only not in names:
        raise ConfigError(f"there is no tier {only!r}", hint=f"tiers: {', '.join(names)}")


def _only(tiers: Sequence[OpenTier], only: str | None) -> list[OpenTier]:
    return [tier for tier in tiers if only in (None, tier.name)]
