"""tierstore: sharded checkpoints over memory, NVMe, HDFS and S3."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tierstore.door.array import Array
    from tierstore.door.checkpoint import Checkpoint
    from tierstore.door.moving import migrate
    from tierstore.door.run import Run
    from tierstore.door.steps import Step
    from tierstore.door.store import Store, open  # noqa: A004
    from tierstore.keys import Attempt
    from tierstore.operations.moved import MigrationResult, Moved, Outcome, Report, Totals
    from tierstore.operations.terms import MoveProgress, Workers
    from tierstore.operations.verify import CheckedCopy, Finding, Verified
    from tierstore.patterns import Selection
    from tierstore.transfer.engine.crew import Effort

__all__ = [
    "Array",
    "Attempt",
    "CheckedCopy",
    "Checkpoint",
    "Effort",
    "Finding",
    "MigrationResult",
    "MoveProgress",
    "Moved",
    "Outcome",
    "Report",
    "Run",
    "Selection",
    "Step",
    "Store",
    "Totals",
    "Verified",
    "Workers",
    "migrate",
    "open",
]
__version__ = "0.1.0"

_HOMES = {
    "Array": "door.array",
    "Attempt": "keys",
    "CheckedCopy": "operations.verify",
    "Checkpoint": "door.checkpoint",
    "Effort": "transfer.engine.crew",
    "Finding": "operations.verify",
    "MigrationResult": "operations.moved",
    "MoveProgress": "operations.terms",
    "Moved": "operations.moved",
    "Outcome": "operations.moved",
    "Report": "operations.moved",
    "Run": "door.run",
    "Selection": "patterns",
    "Step": "door.steps",
    "Store": "door.store",
    "Totals": "operations.moved",
    "Verified": "operations.verify",
    "Workers": "operations.terms",
    "migrate": "door.moving",
    "open": "door.store",
}


def __getattr__(name: str) -> object:
    # Imported when used: the command line and other parts load none of it.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
