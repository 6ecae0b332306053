"""The description of a staged shard: all that is needed to write it to a tier, but for its bytes.

It lies beside the shard's segments in tmpfs (`tierstore.image.folder`) and is read by a process
that had no part in the save, after the trainer's death. A sealed line of JSON comes first, with
what a fragment does not tell; then the fragment as a tier that all ranks share would get it. Until
a tier has the bytes nobody has taken the CRC32C of their blocks, and the fragment has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tierstore.blocks import Buffer, block_count
from tierstore.checkpoint.columns import Ragged, Table
from tierstore.checkpoint.commit import FORMAT, seal, unseal
from tierstore.checkpoint.fragment import FileEntry, Fragment, read_fragment
from tierstore.checkpoint.objects import RECORD
from tierstore.checkpoint.rows import TensorRows
from tierstore.errors import FormatError, TierstoreError
from tierstore.image.folder import ShardName
from tierstore.keys import AttemptId, segment_name

_MOST = 2**53  # bytes of all files, or items of a rank: what is above is no number of either


@dataclass(frozen=True, slots=True, eq=False)
class Description:
    """What a staged shard is.

    Attributes:
        run: whose it is.
        declared: for each rank of the world, how many chunks and values it writes.
        fragment: what its fragment will say on a tier of all ranks; each file has the CRC32C of
            every block, or none has any.
    """

    run: str
    declared: Sequence[int]
    fragment: Fragment

    @property
    def name(self) -> ShardName:
        """Whose shard it is."""
        part = self.fragment
        return ShardName(self.run, AttemptId(part.attempt, part.launch.nonce), part.rank)

    @property
    def checkable(self) -> bool:
        """Whether the CRC32C of the blocks are known: some tier had taken all bytes."""
        return all(len(file.crcs) == block_count(file.size) for file in self.fragment.files)

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.fragment.files)

    def fragment_for(self, ranks: Sequence[int], files: Sequence[FileEntry]) -> Fragment:
        """Return the fragment for a tier that these ranks share.

        Args:
            ranks: ascending; this one is among them.
            files: the files with the CRC32C of their blocks.
        """
        declared = sum(self.declared[rank] for rank in ranks)
        return replace(self.fragment, ranks=tuple(ranks), declared=declared, files=files)

    def to_bytes(self) -> bytes:
        """Return the description as it is staged."""
        head = {"declared": list(self.declared), "format": FORMAT, "shard": str(self.name)}
        return seal(head) + self.fragment.to_bytes()

    @classmethod
    def from_bytes(cls, data: Buffer, name: str = "a description") -> Description:
        """Parse a description; what it says of itself is sound, its files were not looked at.

        Args:
            data: the whole of it.
            name: its key, for errors.

        Raises:
            NewerFormatError: a newer tierstore wrote it.
            FormatError, IntegrityError, IncompleteError: it is damaged or something else.
        """
        end = bytes(data[:RECORD]).find(b"\n") + 1
        head = unseal(data[:end], name)
        shard = ShardName.parse(str(head.get("shard")))
        table = read_fragment(bytes(data[end:]), name)
        _check_files(table, name)
        info, declared = table.info, _counts(head.get("declared"))
        if len(declared) != info.world_size or declared[info.rank] != _items(table):
            raise FormatError(f"{name} does not tell how much each rank writes")
        if info.ranks != tuple(range(info.world_size)) or info.declared != sum(declared):
            raise FormatError(f"{name} is not of a tier that all ranks share")
        try:
            found = cls(shard.run if shard else "", declared, Fragment.of(table))
        except (TierstoreError, ValueError) as error:
            raise FormatError(f"{name} is not of a shard that can be: {error}") from error
        if found.name != shard:
            raise FormatError(f"{name} is of another shard: {found.name}")
        return found


def _items(table: Table) -> int:
    """How many chunks and values there are; the chunks lie where they say and nowhere else."""
    rows = TensorRows.of([table])
    rows.check(table.files.field("size").to_numpy())
    return len(rows.owner) + len(table.values)


def _counts(value: Any) -> list[int]:
    known = type(value) is list and all(type(n) is int and 0 <= n <= _MOST for n in value)
    return value if known else []


def _check_files(table: Table, name: str) -> None:
    """The files are this rank's segments, in order, with all of their CRCs or none."""
    names, sizes, crcs = table.files.flatten()
    if len(names) > 1000 or names.to_pylist() != [
        segment_name(table.info.rank, index) for index in range(len(names))
    ]:
        raise FormatError(f"{name} names other files than its rank's segments")
    if any(size < 1 for size in sizes.to_pylist()) or sum(sizes.to_pylist()) > _MOST:
        raise FormatError(f"{name} names files of impossible sizes")
    counts = Ragged.of(crcs).lengths.tolist()
    whole = [block_count(size) for size in sizes.to_pylist()]
    if counts not in (whole, [0] * len(counts)):
        raise FormatError(f"{name} has the CRC32C of some blocks and not of others")
