"""One checkpoint: what it holds, by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from heapq import merge
from typing import TYPE_CHECKING, Any

from tierstore.checkpoint import GRACE
from tierstore.door.array import Array
from tierstore.errors import UnknownNameError, UnsafePickleError
from tierstore.operations.progress import Progress, unseen

if TYPE_CHECKING:
    from tierstore.checkpoint.fragment import ValueEntry
    from tierstore.door.ladder import OpenLadder
    from tierstore.ladder.find import Found
    from tierstore.operations.verify import Verified


class Checkpoint:
    """A checkpoint of a run: tensors and values by name.

    `checkpoint[name]` is an `Array` where a tensor was saved, of which nothing is read yet, and
    else the value itself. The names are those of `tierstore show --tensors`: the keys of the state
    joined with ".", a rank's own part below `rank00003/`.
    """

    def __init__(self, ladder: OpenLadder, found: Found) -> None:
        self._ladder, self._found = ladder, found

    @property
    def run(self) -> str:
        """The run's name."""
        return self._found.run

    @property
    def step(self) -> int:
        """The step that was saved."""
        return self._found.attempt.step

    @property
    def launch(self) -> int:
        """The number of the launch that saved it."""
        return self._found.attempt.launch

    @property
    def number(self) -> int:
        """Which try of that launch at this step it is, from 1."""
        return self._found.attempt.number

    @property
    def world_size(self) -> int:
        """How many ranks saved it."""
        return self._found.commit.world_size

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self._found.commit.nbytes

    @property
    def tiers(self) -> tuple[str, ...]:
        """The tiers that hold it, fastest first."""
        return tuple(replica.tier for replica in self._found.replicas)

    def keys(self) -> list[str]:
        """Return the names of all tensors and values, sorted."""
        return list(self)

    def __iter__(self) -> Iterator[str]:
        manifest = self._found.manifest
        return merge(manifest.names(), (value.name for value in manifest.values()))

    def __len__(self) -> int:
        manifest = self._found.manifest
        return len(manifest) + sum(1 for _ in manifest.values())

    def __contains__(self, name: object) -> bool:
        manifest = self._found.manifest
        return isinstance(name, str) and (
            manifest.find(name) is not None or manifest.find_value(name) is not None
        )

    def __getitem__(self, name: str) -> Any:
        """Return the tensor of a name as an `Array`, or the value as it was saved.

        Raises:
            UnknownNameError: there is none; also a KeyError.
            UnsafePickleError: the value is a pickle, which is never loaded here.
            FormatError: it is torch's, which is not installed, or cannot be read.
        """
        self._ladder.check_open()
        manifest = self._found.manifest
        if (tensor := manifest.find(name)) is not None:
            return Array(self._ladder, self._found, tensor)
        if (value := manifest.find_value(name)) is not None:
            return _loaded(value)
        close = difflib.get_close_matches(name, list(self), 1)
        raise UnknownNameError(
            f"step {self.step} of run {self.run!r} has nothing called {name!r}",
            hint=f"did you mean {close[0]!r}?" if close else "keys() lists the names",
        )

    def verify(self, *, tier: str | None = None, progress: Progress = unseen) -> Verified:
        """Read all of it again on every tier that holds it, and return all damage.

        It looks at the commit, the manifest, the fragments and every block. `.good` tells whether
        everything is as it was written.

        Args:
            tier: look at this tier only, by its name.
            progress: begins a bar for each tier; see `tierstore.operations.progress`.

        Raises:
            CheckpointNotFoundError: it is on no tier any more.
            ConfigError: there is no such tier.
        """
        from tierstore.operations.verify import verify

        tiers, this = self._ladder.tiers, self._found.id
        return verify(tiers, self.run, self.step, tier=tier, progress=progress, attempt=this)

    def delete(self, *, grace: float = GRACE) -> None:
        """Delete it on every tier: it is gone at once, and its data after the grace.

        A tombstone takes its place on each tier, also where it is not, so that nothing that is on
        its way there brings it back. Then it waits until readers have had their time. Killed or
        failed in between, it may be called again, on what `run[step]` returned before, or by
        another process: that carries on.

        Args:
            grace: seconds that readers have; with 0 it does not wait.

        Raises:
            CheckpointError: some tiers did not do it; it names them. On the others it is deleted.
        """
        from tierstore.operations.delete import delete

        delete(self._ladder.tiers, self.run, self._found.id, grace=grace)

    def __repr__(self) -> str:
        count = len(self._found.manifest)
        return (
            f"<tierstore.Checkpoint {self.run!r}, step {self.step}: {count} tensors, "
            f"{self.nbytes:,} bytes on {', '.join(self.tiers)}>"
        )


def _loaded(value: ValueEntry) -> Any:
    from tierstore.checkpoint.values import decode

    if value.kind != "json":
        raise UnsafePickleError(
            f"{value.name} is stored as a pickle, and loading one can run any code",
            hint="if you trust who wrote the checkpoint, use the load of a Checkpointer that is "
            "made with allow_pickle=True",
        )
    return decode(bytes(value.data).decode())
