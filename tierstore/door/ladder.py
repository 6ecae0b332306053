"""The open tiers that all objects of one store share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tierstore.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tierstore.ladder.tiers import OpenTier


class OpenLadder:
    """Tiers until they are closed.

    Args:
        tiers: fastest first.
    """

    def __init__(self, tiers: Sequence[OpenTier]) -> None:
        self._tiers = tuple(tiers)
        self._closed = False

    @property
    def tiers(self) -> tuple[OpenTier, ...]:
        """The tiers.

        Raises:
            CheckpointError: they are closed.
        """
        self.check_open()
        return self._tiers

    def check_open(self) -> None:
        """Check that the store is open.

        Raises:
            CheckpointError: it is not.
        """
        if self._closed:
            raise CheckpointError("this store is closed", hint="open it again")

    def close(self) -> None:
        """Close the tiers. Idempotent."""
        from tierstore.ladder.tiers import close_ladder

        if not self._closed:
            self._closed = True
            close_ladder(self._tiers)

    def __str__(self) -> str:
        return ", ".join(f"{tier.name} {tier.config.url}" for tier in self._tiers)
