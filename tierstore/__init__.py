"""tierstore: sharded checkpoints over memory, NVMe, HDFS and S3."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tierstore.door.array import Array
    from tierstore.door.checkpoint import Checkpoint
    from tierstore.door.run import Run
    from tierstore.door.steps import Step
    from tierstore.door.store import Store, open  # noqa: A004
    from tierstore.operations.verify import CheckedCopy, Finding, Verified

__all__ = [
    "Array",
    "CheckedCopy",
    "Checkpoint",
    "Finding",
    "Run",
    "Step",
    "Store",
    "Verified",
    "open",
]
__version__ = "0.1.0"

_HOMES = {
    "Array": "door.array",
    "CheckedCopy": "operations.verify",
    "Checkpoint": "door.checkpoint",
    "Finding": "operations.verify",
    "Run": "door.run",
    "Step": "door.steps",
    "Store": "door.store",
    "Verified": "operations.verify",
    "open": "door.store",
}


def __getattr__(name: str) -> object:
    # Imported when used: the command line and other parts load none of it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
