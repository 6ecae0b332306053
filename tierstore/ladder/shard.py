"""What one rank saves of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tierstore.checkpoint.description import Description
from tierstore.checkpoint.fragment import FileEntry, Fragment, ValueEntry
from tierstore.checkpoint.timeline import Launch
from tierstore.image.layout import Chunk, ImageLayout
from tierstore.keys import Attempt


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """What one rank saves of one step; its bytes are in a staged image.

    Attributes:
        launch: the launch that saves; its number and nonce are the attempt's.
        attempt: the try.
        rank: whose shard it is.
        world_size: ranks in the job.
        declared: for each rank of the world, how many chunks and values it writes.
        layout: where each chunk lies.
        chunks: parallel to `layout.placements`.
        values: the plain values that this rank writes.
    """

    launch: Launch
    attempt: Attempt
    rank: int
    world_size: int
    declared: Sequence[int]
    layout: ImageLayout
    chunks: Sequence[Chunk]
    values: Sequence[ValueEntry] = ()

    def __post_init__(self) -> None:
        if self.attempt.launch != self.launch.number:
            raise ValueError(f"attempt {self.attempt} is not of launch {self.launch.number}")
        if len(self.declared) != self.world_size:
            raise ValueError(f"{len(self.declared)} numbers declared for {self.world_size} ranks")
        mine = len(self.chunks) + len(self.values)
        if self.declared[self.rank] != mine:
            raise ValueError(f"rank {self.rank} declared {self.declared[self.rank]}, holds {mine}")

    def description(self, run: str, files: Sequence[FileEntry] = ()) -> Description:
        """Return what can be told of it.

        Args:
            run: the run's name.
            files: its files, once the CRC32C of their blocks are known.
        """
        bare = [FileEntry(segment.name, segment.size, ()) for segment in self.layout.segments]
        part = Fragment(
            attempt=self.attempt,
            launch=self.launch,
            rank=self.rank,
            ranks=tuple(range(self.world_size)),
            world_size=self.world_size,
            declared=sum(self.declared),
            chunks=self.chunks,
            placements=self.layout.placements,
            files=files or bare,
            values=self.values,
        )
        return Description(run, self.declared, part)
