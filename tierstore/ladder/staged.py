"""Staged shards of trainers that may be dead: found, checked and sent by another process.

::

    images = ImagesBackend()
    for shard in find_staged(images).shards:
        shard.send(tier.backend)             # the commit, once every rank's shard has been sent

What "checked" means: a description is written only when the copy into the image has ended, so
every byte is there; the headers of the segments are what the description says, and so are their
sizes. Where some tier had taken all bytes before the trainer died, the CRC32C of every block is in
the description too, and the bytes are held against them; else nobody had taken any, and the sender
does, as the trainer would have done.

A tier that lies in the same tmpfs takes the files by a link: nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from tierstore.backend import Backend, adopt, local_path
from tierstore.backends.images import ImagesBackend, ImageState
from tierstore.blocks import BLOCK_SIZE, parts
from tierstore.checkpoint.commit import Commit
from tierstore.checkpoint.description import Description
from tierstore.checkpoint.fragment import FileEntry
from tierstore.checkpoint.objects import FRAGMENT, read_record
from tierstore.checkpoint.store import RunStore
from tierstore.errors import (
    FormatError,
    IntegrityError,
    NotFoundError,
    TierstoreError,
    TruncatedFileError,
)
from tierstore.image.dtypes import stored_type
from tierstore.image.header import PREFIX, header_size, read_header
from tierstore.keys import AttemptKeys, RunKeys
from tierstore.ladder.claim import Claims
from tierstore.transfer.part import Wrong, checked
from tierstore.transfer.read import Replica
from tierstore.transfer.source import AlignedBuffers, StoredSource
from tierstore.transfer.verify import verify_files
from tierstore.transfer.write import FileWrite, write_files

_Member = tuple[int, int, str, tuple[int, ...], str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class StagedShard:
    """A shard that lies whole in an image.

    Attributes:
        images: where it is.
        description: what it is.
        image: the image that holds it.
    """

    images: ImagesBackend
    description: Description
    image: ImageState

    def check(self, *, progress: Callable[[int], None] | None = None) -> None:
        """Read all of it, and hold it against its description; see the module.

        Args:
            progress: told the bytes of each block that was compared, from several threads.

        Raises:
            IntegrityError: it is not what its description says.
            NotFoundError: the image has gone.
        """
        with self.images.hold(self.description.name):
            self._check_headers()
            if not self.description.checkable:
                return
            replica = Replica("images", self.images, self._keys)
            for found in verify_files(replica, self.description.fragment.files, progress=progress):
                for damage in found.damage:
                    raise IntegrityError(
                        f"{self.image.path}: block {damage.block} of {found.name} is damaged: "
                        f"{damage.outcome}"
                    )

    def send(self, backend: Backend, ranks: Sequence[int] | None = None) -> Commit | None:
        """Write it to a tier, and commit the attempt there if it was the last one missing.

        Args:
            backend: the tier.
            ranks: those that share the tier; None for all of the job.

        Returns:
            The commit; None while other ranks' shards are missing.

        Raises:
            IntegrityError: it is not what its description says; nothing was committed.
            AttemptDeletedError: the checkpoint was deleted on the tier.
            NotFoundError: the image has gone.
            StorageError: the tier refused.
        """
        told = self.description
        part = told.fragment
        ranks = part.ranks if ranks is None else tuple(ranks)
        store = RunStore(backend, told.run)
        with self.images.hold(told.name):
            if commit := store.try_commit(part.attempt, part.launch.nonce, ranks):
                return commit
            self._check_headers()
            Claims(store).claim(part.launch)
            store.write_fragment(told.fragment_for(ranks, self._write(backend)))
        return store.try_commit(part.attempt, part.launch.nonce, ranks)

    @property
    def _keys(self) -> AttemptKeys:
        return RunKeys(self.description.run).attempt(*self.description.name.id)

    def _write(self, backend: Backend) -> list[FileEntry]:
        """Write the segments; return them with the CRC32C of their blocks."""
        files, capabilities = self.description.fragment.files, backend.capabilities
        if not files:
            return []
        if (linked := self._link(backend)) is not None:
            return linked
        largest = max(capabilities.part_size_for(file.size) for file in files)
        buffers = AlignedBuffers(largest, capabilities.concurrency)
        writes = [
            FileWrite(
                self._keys.segment(file.name),
                file.size,
                StoredSource(self.images, self._keys.segment(file.name), buffers),
                file.crcs if self.description.checkable else None,
            )
            for file in files
        ]
        with ThreadPoolExecutor(capabilities.concurrency, "tierstore-staged") as pool:
            crcs = write_files(backend, writes, pool=pool)
        return [FileEntry(file.name, file.size, row) for file, row in zip(files, crcs, strict=True)]

    def _link(self, backend: Backend) -> list[FileEntry] | None:
        """Let the tier take the files as they are; None if it lies elsewhere."""
        taken: list[FileEntry] = []
        for file in self.description.fragment.files:
            key = self._keys.segment(file.name)
            path = local_path(self.images, key)
            if path is None or adopt(backend, key, path, file.size) is None:
                return None
            try:
                taken.append(FileEntry(file.name, file.size, self._crcs(file, key)))
            except BaseException:
                backend.delete([key])
                raise
        return taken

    def _crcs(self, file: FileEntry, key: str) -> list[int]:
        """Read a file and return the CRC32C of its blocks, which are as they were if known."""
        known = file.crcs if self.description.checkable else None
        source = StoredSource(self.images, key, AlignedBuffers(BLOCK_SIZE, 1))
        crcs: list[int] = []
        for offset, length in parts(file.size, BLOCK_SIZE):
            with source.view(offset, length) as block:
                crcs += checked(block, offset, known, lambda wrong: _damaged(key, wrong))
        return crcs

    def _check_headers(self) -> None:
        """Hold every segment's size and header against the description."""
        part = self.description.fragment
        wanted: list[list[_Member]] = [[] for _ in part.files]
        for chunk, place in zip(part.chunks, part.placements, strict=True):
            stored = stored_type(chunk.dtype, chunk.name)
            offsets = () if chunk.whole else chunk.offsets
            wanted[place.segment].append(
                (
                    place.offset,
                    place.nbytes,
                    chunk.name,
                    offsets,
                    stored.tag,
                    stored.shape(chunk.sizes),
                )
            )
        for file, members in zip(part.files, wanted, strict=True):
            self._check_header(file, sorted(members))

    def _check_header(self, file: FileEntry, wanted: list[_Member]) -> None:
        key = self._keys.segment(file.name)
        size = self.images.stat(key).size
        if size != file.size:
            raise TruncatedFileError(f"{key} has {size} bytes instead of {file.size} where staged")
        length = header_size(self._read(key, min(size, PREFIX)))
        if length > size:
            raise FormatError(f"{key}: its header would have {length} of {size} bytes")
        entries = read_header(self._read(key, length))
        found = sorted(
            (each.offset, each.nbytes, each.name, each.chunk or (), each.tag, each.shape)
            for each in entries
        )
        end = max((each.offset + each.nbytes for each in entries), default=length)
        if found != wanted or end != size:
            raise FormatError(f"{key}: its header is not what its description says")

    def _read(self, key: str, length: int) -> bytearray:
        buffer = bytearray(length)
        self.images.read_into(key, 0, memoryview(buffer))
        return buffer


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the images of a host hold.

    Attributes:
        shards: those that are whole.
        incomplete: images without a whole shard: free, being copied to, or of a trainer that died
            in the middle of the copy.
        damaged: images whose description cannot be trusted, and why.
    """

    shards: tuple[StagedShard, ...]
    incomplete: tuple[ImageState, ...]
    damaged: tuple[tuple[ImageState, TierstoreError], ...]


def find_staged(images: ImagesBackend) -> Inventory:
    """Return what the images hold, by run, attempt and rank."""
    shards, incomplete, damaged = [], [], []
    for state in images.images():
        if state.shard is None:
            incomplete.append(state)
            continue
        key = RunKeys(state.shard.run).attempt(*state.shard.id).staged(state.shard.rank)
        try:
            told = Description.from_bytes(read_record(images, key, limit=FRAGMENT), key)
            if told.name != state.shard:
                raise FormatError(f"{key} is the description of {told.name}")
        except NotFoundError:  # its trainer stages the next save into it by now
            incomplete.append(replace(state, shard=None))
        except TierstoreError as error:
            damaged.append((state, error))
        else:
            shards.append(StagedShard(images, told, state))
    shards.sort(key=lambda shard: shard.description.name)
    return Inventory(tuple(shards), tuple(incomplete), tuple(damaged))


def _damaged(key: str, wrong: Wrong) -> IntegrityError:
    return IntegrityError(f"{key}: block {wrong.block} is damaged where it is staged")
