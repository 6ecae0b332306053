"""How the ranks of one `dcp.save` learn which attempt they write, and as which rank.

The coordinator chooses the attempt in `prepare_global_plan`; all ranks need it in `write_data`. A
rank's number is the place of its plan there: what `set_up_storage_writer` is told depends on the
version of torch and on what a subclass passes on.
DCP hands plans from the one to the other, but with plan caching a rank goes on with the plan of an
earlier save, and whatever a plan carries is that save's.

What DCP does in every save is to scatter the coordinator's answers, by pickling, in the thread that
calls `write_data` next. So the notice rides in those answers and is delivered by being unpickled;
what stays in the plan is None, and no cache can hold a step. `expect` empties the letter box at
the start of a save, so a notice that does not come is an error and never an old one.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from tierstore.checkpoint.timeline import Launch
from tierstore.errors import CheckpointError
from tierstore.keys import Attempt

UNDECLARED = -1


@dataclass(frozen=True, slots=True)
class Notice:
    """What the coordinator tells every rank about a save.

    Attributes:
        attempt: the try.
        launch: the launch that saves.
        world_size: ranks that save.
        declared: chunks and values that all of them write; UNDECLARED when cached plans hide it.
        rank: who is told.
    """

    attempt: Attempt
    launch: Launch
    world_size: int
    declared: int
    rank: int = 0


class _Box(threading.local):
    notice: Notice | None = None


_box = _Box()


class Parcel:
    """A notice that is delivered where it is unpickled."""

    def __init__(self, notice: Notice) -> None:
        self._notice = notice

    def __reduce__(self) -> tuple[object, ...]:
        return deliver, (self._notice,)


def expect() -> None:
    """Forget what came before; a new save begins in this thread."""
    _box.notice = None


def deliver(notice: Notice) -> None:
    """Leave the notice to this thread. Returns None, and that is what stays in the plan."""
    _box.notice = notice


def collect() -> Notice:
    """Return the notice of the save that this thread is in.

    Raises:
        CheckpointError: none came.
    """
    notice, _box.notice = _box.notice, None
    if notice is None:
        raise CheckpointError(
            "this rank was not told which attempt it writes: the plans that the coordinator's "
            "prepare_global_plan returned were not sent to it in this save",
            hint="call the writer through dcp.save or dcp.async_save",
        )
    return notice
