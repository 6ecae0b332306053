"""torch on top of tierstore: `Checkpointer`, and a reader and writer for DCP."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    "TierStorageReader",
    "TierStorageWriter",
    "cause",
    "per_rank",
]

_HOMES = {
    "Checkpointer": "checkpointer",
    "PerRank": "state.flatten",
    "Save": "save",
    "TierStorageReader": "dcp.reader",
    "TierStorageWriter": "dcp.writer",
    "cause": "dcp.errors",
    "per_rank": "state.flatten",
}


def __getattr__(name: str) -> object:
    # Imported when used: whoever needs only DCP's reader does not load the rest.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
