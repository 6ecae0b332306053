"""The one way to move a part of a file: borrow its bytes, check them, send them, read them back.

Saves, migrations, imports, exports and `dcp.*` move parts by `move`, and whoever reads compares by
`wrong`. Nothing else in the tree sends a part, compares the CRC32Cs of blocks, or reads back.

Blocks whose CRC32C is known already (their bytes come back from a tier) are compared before they
are sent: damage ends in an error and is never passed on. The CRC32C that is taken then serves all
that follows: the store that checks it, the manifest, and the look at what the store holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tierstore.backend import Backend, Capabilities, Upload
from tierstore.blocks import BLOCK_SIZE, block_crcs, combine_blocks, crc32c, crc32c_of, cut
from tierstore.transfer.source import BlockSource, Buffers, RevokedError

Crcs = Sequence[int] | npt.NDArray[np.uint32]
"""One CRC32C for every block of a file, in order."""


class Wrong(NamedTuple):
    """A block that is not what it should be.

    Attributes:
        block: its index in the file.
        found: the CRC32C of its bytes.
        expected: the one that is known.
    """

    block: int
    found: int
    expected: int

    def __str__(self) -> str:
        return f"CRC32C {self.found:08x} instead of {self.expected:08x}"


Blame = Callable[[Wrong], Exception]
"""Says what it means that a source has a wrong block."""


class Taken(NamedTuple):
    """A part that a store has taken.

    Attributes:
        crcs: the CRC32C of each of its blocks.
        crc: of the whole part.
        proven: it was read back, and is what was sent.
    """

    crcs: list[int]
    crc: int
    proven: bool


def reads_back(capabilities: Capabilities, *, verify: bool) -> bool:
    """Return whether whoever writes to a store has to read back what it wrote.

    Args:
        capabilities: of the store.
        verify: the copy is to be believed in place of its source, which may then be deleted, as
            in a migration: so it is read wherever the store itself does not compare checksums.
            A save is read back only where the store does not vouch for it either: its blocks are
            checked by every reader, and tiers above or below have them too.
    """
    return capabilities.needs_read_back or (verify and not capabilities.server_checksum)


def move(
    upload: Upload,
    source: BlockSource,
    offset: int,
    length: int,
    *,
    known: Crcs | None,
    blame: Blame,
    back: Buffers | None = None,
) -> Taken:
    """Move a part of a file: whole blocks from the source to an upload.

    Args:
        upload: of the file.
        source: the file's bytes.
        offset: where the part starts; a multiple of the block size.
        length: bytes of it.
        known: the CRC32Cs of the file's blocks; the source is held against them. None or empty:
            they are not known.
        blame: see `checked`.
        back: memory to read the part back, if that is to be done before the commit. What cannot
            be read then, or is wrong, is not `proven`: it has to be read after the commit.

    Raises:
        Exception: as `blame` says, if the source is not what `known` says. Nothing was sent.
        StorageError: the source or the store failed.
    """
    while True:
        try:
            with source.view(offset, length) as part:
                crcs = checked(part, offset, known, blame)
                crc = combine_blocks(crcs, length)
                upload.write(offset, part, crc)
            break
        except RevokedError:
            pass  # the memory was wanted elsewhere, and the source has others now
    if back is None:
        return Taken(crcs, crc, proven=False)
    with back.take(length) as memory:
        proven = upload.read_back(offset, memory) and crc32c(memory) == crc
    return Taken(crcs, crc, proven)


def checked(memory: memoryview, offset: int, known: Crcs | None, blame: Blame) -> list[int]:
    """Return the CRC32C of every block of a part, which may be sent then.

    Args:
        memory: the part.
        offset: where it starts in its file.
        known: as for `move`.
        blame: returns what is raised for the first block that is wrong.
    """
    crcs = block_crcs(memory)
    if known is not None and len(known):
        for found in _differing(crcs, offset, known):
            raise blame(found)
    return crcs


def wrong(memory: Sequence[memoryview], offset: int, known: Crcs) -> list[Wrong]:
    """Return the blocks whose CRC32C is not the known one.

    Args:
        memory: whole blocks of a file, in pieces that are one behind the other.
        offset: where they start in it.
        known: the CRC32C of every block of the file.
    """
    if len(memory) == 1:
        crcs = block_crcs(memory[0])
    else:
        size = sum(piece.nbytes for piece in memory)
        crcs = [crc32c_of(cut(memory, at, BLOCK_SIZE)) for at in range(0, size, BLOCK_SIZE)]
    return _differing(crcs, offset, known)


def wrong_at(
    backend: Backend, key: str, offset: int, memory: memoryview, known: Crcs
) -> list[Wrong]:
    """Read whole blocks of a stored file into `memory`; return those that are wrong."""
    backend.read_into(key, offset, memory)
    return wrong([memory], offset, known)


def crc_at(backend: Backend, key: str, offset: int, memory: memoryview) -> int:
    """Read a part of a stored file into `memory`; return its CRC32C."""
    backend.read_into(key, offset, memory)
    return crc32c(memory)


def _differing(crcs: Sequence[int], offset: int, known: Crcs) -> list[Wrong]:
    first = offset // BLOCK_SIZE
    return [
        Wrong(block, crc, int(known[block]))
        for block, crc in enumerate(crcs, first)
        if crc != known[block]
    ]
