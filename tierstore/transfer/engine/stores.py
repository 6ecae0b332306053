"""The stores that an engine moves objects between, by name, and how to open them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass

from tierstore.backend import Backend
from tierstore.config import TierConfig
from tierstore.transfer.engine.entries import SOURCE
from tierstore.transfer.engine.records import TARGET
from tierstore.wrappers import open_tier
from tierstore.wrappers.metrics import Metered


@dataclass(frozen=True, slots=True, eq=False)
class Stores:
    """Open stores, with their policy around them.

    Attributes:
        by_name: as entries call them.
        targets: those of them that objects go to.
    """

    by_name: Mapping[str, Backend]
    targets: tuple[str, ...] = (TARGET,)

    @classmethod
    def pair(cls, source: Backend, target: Backend) -> Stores:
        """Return those of entries that name none: everything goes from one to the other."""
        return cls({SOURCE: source, TARGET: target})

    def __getitem__(self, name: str) -> Backend:
        return self.by_name[name]

    def close(self) -> None:
        """Close them all."""
        with ExitStack() as closed:
            for store in self.by_name.values():
                closed.enter_context(closing(store))

    @property
    def retries(self) -> int:
        """How many requests were repeated so far, as far as the stores count them."""
        metered = [each for each in self.by_name.values() if isinstance(each, Metered)]
        return sum(sum(each.snapshot().retries.values()) for each in metered)

    @property
    def part_size(self) -> int:
        """Bytes of the largest usual part of those that objects go to."""
        return max(self[name].capabilities.part_size for name in self.targets)

    @property
    def wide(self) -> int:
        """How many large commands at once suit one worker."""
        return max(each.capabilities.concurrency for each in self.by_name.values())

    @property
    def width(self) -> int:
        """How many commands at once suit one worker."""
        small = (each.capabilities.small_concurrency for each in self.by_name.values())
        return max(self.wide, *small)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to open the stores, in this process or in another one; it can be pickled.

    Attributes:
        tiers: by name.
        targets: as in `Stores`.
        sample: the key of an object that sources have; empty if whatever they list will do.
    """

    tiers: Mapping[str, TierConfig]
    targets: tuple[str, ...] = (TARGET,)
    sample: str = ""

    def open(self) -> Stores:
        """Open all of them; whoever calls closes them.

        Raises:
            ConfigError: one is wrong.
        """
        with ExitStack() as opened:
            stores = {
                name: opened.enter_context(closing(open_tier(tier)))
                for name, tier in self.tiers.items()
            }
            opened.pop_all()
        return Stores(stores, self.targets)
