"""One run: its steps and its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tierstore.keys import check_run

if TYPE_CHECKING:
    from tierstore.door.checkpoint import Checkpoint
    from tierstore.door.ladder import OpenLadder
    from tierstore.door.steps import Step


class Run:
    """A run of a store. Nothing is looked at before a method is called.

    Raises:
        InvalidKeyError: the name cannot be that of a run.
    """

    def __init__(self, ladder: OpenLadder, name: str) -> None:
        self._ladder, self._name = ladder, check_run(name)

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    def steps(self, *, everything: bool = False, allow_unseen: bool = False) -> list[Step]:
        """Return what was saved, the newest first; nothing if there is no such run.

        Args:
            everything: also what is of abandoned lines, and deleted.
            allow_unseen: leave out what only tiers hold that cannot be listed, with a warning.

        Raises:
            TierstoreError: a tier cannot be listed; it names it.
        """
        from tierstore.door.steps import list_steps

        tiers = self._ladder.tiers
        return list_steps(tiers, self._name, everything=everything, allow_unseen=allow_unseen)

    def latest(self, *, allow_older: bool = False) -> Checkpoint:
        """Return the checkpoint that a restore would take: the newest on the timeline.

        Args:
            allow_older: take an older one if the newest cannot be read, or a tier that may hold a
                newer one cannot be listed.

        Raises:
            CheckpointNotFoundError: there is none.
            CheckpointError: it cannot be read on any tier, and why.
            StorageError: a tier cannot be listed.
        """
        return self._open(None, allow_older=allow_older)

    def __getitem__(self, step: int) -> Checkpoint:
        """Return the checkpoint of a step: of several tries the newest on the timeline.

        Raises:
            CheckpointNotFoundError: there is none.
            CheckpointError: it cannot be read on any tier, and why.
            StorageError: a tier cannot be listed, and may hold it.
        """
        return self._open(step, allow_older=False)

    __iter__ = None  # not by asking for steps 0, 1, 2, ...; see `steps`

    def __repr__(self) -> str:
        return f"<tierstore.Run {self._name!r} on {self._ladder}>"

    def _open(self, step: int | None, *, allow_older: bool) -> Checkpoint:
        from tierstore.door.checkpoint import Checkpoint
        from tierstore.ladder.find import choose

        found = choose(self._ladder.tiers, self._name, step=step, allow_older=allow_older)
        return Checkpoint(self._ladder, found)
