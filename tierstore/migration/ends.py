"""Between which two stores a migration goes."""

from __future__ import annotations

from dataclasses import dataclass

from tierstore.backend import Backend
from tierstore.transfer.engine.stores import Stores


@dataclass(frozen=True, slots=True)
class Ends:
    """Where objects come from and where they go.

    Attributes:
        source: where they are.
        target: where they shall be, under the same keys.
        only: if one object is migrated, its keys at the source and at the destination.
    """

    source: Backend
    target: Backend
    only: tuple[str, str] | None = None

    @property
    def stores(self) -> Stores:
        """The same, as an engine knows them."""
        return Stores.pair(self.source, self.target)
