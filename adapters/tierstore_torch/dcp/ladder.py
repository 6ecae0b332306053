"""The tiers of a DCP writer or reader, opened when they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import finalize

from tierstore.config import Config
from tierstore.ladder.tiers import OpenTier, close_ladder
from tierstore.wrappers import open_tier


class Ladder:
    """Tiers that every rank sees. Connections are closed with `close` or with the object.

    DCP leaves no moment to find out which ranks share a tier; `finish` finds every rank's fragment
    on every tier, or the save fails. Pickles without its connections.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._tiers: list[OpenTier] = []
        self._finalizer = finalize(self, close_ladder, self._tiers)

    def tiers(self, world_size: int = 1) -> Sequence[OpenTier]:
        """Return the tiers, opened, as shared by this many ranks.

        Raises:
            ConfigError: a tier's URL or options are wrong.
        """
        ranks = tuple(range(world_size))
        if [tier.ranks for tier in self._tiers] != [ranks] * len(self.config.tiers):
            self.close()
            for tier in self.config.tiers:
                self._tiers.append(OpenTier(tier, open_tier(tier), ranks))
        return self._tiers

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        close_ladder(self._tiers)
        self._tiers.clear()

    def __reduce__(self) -> tuple[object, ...]:
        return Ladder, (self.config,)
