"""What the ranks do in test_latest; see tests.ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tierstore.config import Config, TierConfig
from tierstore.ladder import find
from tierstore_torch import Checkpointer, catalog


def one_tier_is_away(folder: str) -> tuple[int | None, list[list[str]]]:
    """A tier does not answer rank 0: no other rank asks it in vain, for as long as it retries."""
    tiers = [TierConfig(name, f"file://{folder}/{name}") for name in ("a", "b")]
    asked: list[list[str]] = []

    def opened(tiers: Any, *what: Any) -> Any:
        asked.append([tier.name for tier in tiers])
        return find.open_attempt(tiers, *what)

    with Checkpointer(Config(tuple(tiers)), run="run") as checkpointer:
        checkpointer.save(1, {"w": torch.ones(4)}).wait()
        dist.barrier()
        if dist.get_rank() == 0:
            Path(folder, "b").rename(f"{folder}/kept")
            Path(folder, "b").write_text("in the way")
        dist.barrier()
        catalog.open_attempt = opened
        try:
            return checkpointer.restore({"w": torch.zeros(4)}, allow_older=True), asked
        finally:
            catalog.open_attempt = find.open_attempt
