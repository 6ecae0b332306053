"""tierstore: sharded checkpoints over memory, NVMe, HDFS and S3."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tierstore.door.array import Array
    from tierstore.door.checkpoint import Checkpoint
    from tierstore.door.run import Run
    from tierstore.door.store import Store, open  # noqa: A004

__all__ = ["Array", "Checkpoint", "Run", "Store", "open"]
__version__ = "0.1.0"

_HOMES = {
    "Array": "array",
    "Checkpoint": "checkpoint",
    "Run": "run",
    "Store": "store",
    "open": "store",
}


def __getattr__(name: str) -> object:
    # Imported when used: the command line and other parts load none of it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.door.{_HOMES[name]}"), name)
