"""torch on top of tierstore: `Checkpointer`, and a reader and writer for DCP."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tierstore.ladder.handle import State, TierStatus
    from tierstore_torch.checkpointer import Checkpointer
    from tierstore_torch.dcp.errors import cause
    from tierstore_torch.dcp.reader import TierStorageReader
    from tierstore_torch.dcp.writer import TierStorageWriter
    from tierstore_torch.save import Save
    from tierstore_torch.state.flatten import PerRank, per_rank

__all__ = [
    "Checkpointer",
    "PerRank",
    "Save",
    "State",
    "TierStatus",
    "TierStorageReader",
    "TierStorageWriter",
    "cause",
    "per_rank",
]

_HOMES = {
    "Checkpointer": "tierstore_torch.checkpointer",
    "PerRank": "tierstore_torch.state.flatten",
    "Save": "tierstore_torch.save",
    "State": "tierstore.ladder.handle",
    "TierStatus": "tierstore.ladder.handle",
    "TierStorageReader": "tierstore_torch.dcp.reader",
    "TierStorageWriter": "tierstore_torch.dcp.writer",
    "cause": "tierstore_torch.dcp.errors",
    "per_rank": "tierstore_torch.state.flatten",
}


def __getattr__(name: str) -> object:
    # Imported when used: whoever needs only DCP's reader does not load the rest.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
