"""Between which stores objects are moved."""

from __future__ import annotations

from dataclasses import dataclass

from tierstore.backend import Backend


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

    def target_key(self, key: str) -> str:
        """Return the key at the destination of a key at the source."""
        return self.only[1] if self.only else key
