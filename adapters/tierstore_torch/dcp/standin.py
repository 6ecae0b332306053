"""What takes a tensor's place in a staged state dict."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from tierstore.errors import PlanError, TierstoreError
from tierstore.image.layout import Chunk
from tierstore.image.pool import Image, open_image
from tierstore_torch.state.staging import image_bytes
from tierstore_torch.torch_private import PlannedTensor


@dataclass(frozen=True, slots=True)
class StagedChunk:
    """A staged chunk and where its bytes start in the image."""

    chunk: Chunk
    offset: int


class _Memory(Protocol):
    def base(self) -> torch.Tensor:
        """The image as a flat tensor of bytes."""
        ...


class OwnMemory:
    """A staging image of this process. It crosses to another by its path.

    Attributes:
        image: this save's lease of it.
    """

    def __init__(self, image: Image) -> None:
        self.image = image
        self._base = image_bytes(image)

    def base(self) -> torch.Tensor:
        """The image as a flat tensor of bytes."""
        return self._base

    def __reduce__(self) -> tuple[object, ...]:
        self.image.lend()
        return BorrowedMemory, (self.image.path, self._base.numel())


class BorrowedMemory:
    """The trainer's staging image, in DCP's save process; opened when first looked at."""

    def __init__(self, path: str, size: int) -> None:
        self._path, self._size = path, size
        self._open: tuple[Image, torch.Tensor] | None = None

    def base(self) -> torch.Tensor:
        """The image as a flat tensor of bytes."""
        with _borrowed_lock:
            if self._open is None:
                image = open_image(self._path, self._size)
                self._open = image, image_bytes(image)
                _borrowed.append(self)
            return self._open[1]

    def close(self) -> None:
        """Let the trainer have it back."""
        if self._open is not None:
            image, self._open = self._open[0], None
            image.release()


_borrowed: list[BorrowedMemory] = []
_borrowed_lock = threading.Lock()


def return_borrowed() -> None:
    """Close what the save that is over has opened. DCP's save process runs one save at a time."""
    with _borrowed_lock:
        while _borrowed:
            _borrowed.pop().close()


class StandIn(PlannedTensor):
    """A staged tensor: plans like the tensor it stands for, and hands out views of the image."""

    _memory: _Memory
    _places: Sequence[StagedChunk]
    _sharded: bool

    @classmethod
    def make(
        cls, like: torch.Tensor, places: Sequence[StagedChunk], memory: _Memory, *, sharded: bool
    ) -> StandIn:
        """Return the stand-in for a tensor.

        Args:
            like: of the tensor's global shape and dtype; its numbers do not matter.
            places: this rank's chunks of it.
            memory: where they are.
            sharded: whether DCP sees shards of a tensor rather than a whole one.
        """
        made = torch.empty(like.shape, dtype=like.dtype, device="meta").as_subclass(cls)
        made._memory, made._places, made._sharded = memory, places, sharded  # noqa: SLF001
        return made

    def write_items(self, name: str) -> list[WriteItem]:
        """See `PlannedTensor`."""
        kind = WriteItemType.SHARD if self._sharded else WriteItemType.TENSOR
        return [_write_item(name, place.chunk, self.dtype, kind) for place in self._places]

    def shard(self, index: MetadataIndex) -> torch.Tensor:
        """See `PlannedTensor`."""
        for place in self._places:
            if index.offset is None or tuple(index.offset) == place.chunk.offsets:
                return self._view(place)
        raise PlanError(f"{index.fqn}: nothing was staged at offset {tuple(index.offset or ())}")

    def _view(self, place: StagedChunk) -> torch.Tensor:
        data = self._memory.base()[place.offset : place.offset + place.chunk.nbytes]
        return data.view(self.dtype).view(place.chunk.sizes)

    def __reduce_ex__(self, protocol: Any) -> tuple[object, ...]:
        like = (tuple(self.shape), self.dtype)
        return _stand_in, (*like, self._places, self._memory, self._sharded)


def _stand_in(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    places: Sequence[StagedChunk],
    memory: _Memory,
    sharded: bool,
) -> StandIn:
    like = torch.empty(shape, dtype=dtype, device="meta")
    return StandIn.make(like, places, memory, sharded=sharded)


def _write_item(name: str, chunk: Chunk, dtype: torch.dtype, kind: WriteItemType) -> WriteItem:
    return WriteItem(
        index=MetadataIndex(name, chunk.offsets),
        type=kind,
        tensor_data=TensorWriteData(
            chunk=ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)),
            properties=TensorProperties(dtype=dtype),
            size=torch.Size(chunk.shape),
        ),
    )


class Refusal(PlannedTensor):
    """What stands in a staged state dict when staging failed: planning it raises the error."""

    _error: TierstoreError

    @classmethod
    def of(cls, error: TierstoreError) -> Refusal:
        """Return the refusal that raises `error`."""
        made = torch.empty(0, device="meta").as_subclass(cls)
        made._error = error.with_traceback(None)  # noqa: SLF001 - frames would keep the state
        return made

    def write_items(self, name: str) -> NoReturn:  # noqa: ARG002 - DCP's protocol
        """See `PlannedTensor`."""
        raise self._error

    def shard(self, index: MetadataIndex) -> NoReturn:  # noqa: ARG002 - DCP's protocol
        """See `PlannedTensor`."""
        raise self._error

    def __reduce_ex__(self, protocol: Any) -> tuple[object, ...]:
        return Refusal.of, (self._error,)
