"""What a rank does that is told to stop while the others are not; see tests.ranks."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import torch.distributed as dist

from tests.integration.checkpointer_cases import outcome
from tests.patience import PATIENCE
from tierstore_torch import Checkpointer


def sigterm_without_the_others(url: str, folder: str) -> bool:
    """Return whether rank 0 gave the other up, whose patience is longer than what is left."""
    told = Path(folder, "told")
    checkpointer = Checkpointer(url, run="run", deadline=PATIENCE, sigterm_deadline=0.5)
    with checkpointer:
        if dist.get_rank() == 0:
            signal.raise_signal(signal.SIGTERM)
            assert "lost the other 1 ranks" in outcome(checkpointer.stop_requested)
            told.touch()
        until = time.monotonic() + PATIENCE / 10
        while not told.exists() and time.monotonic() < until:
            time.sleep(0.01)
        return told.exists()
