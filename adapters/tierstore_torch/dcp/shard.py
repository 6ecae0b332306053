"""What one rank writes of one `dcp.save`: from DCP's plan to files and a fragment."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from math import prod
from typing import TypeGuard, cast

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import WriteResult

from tierstore.backend import Backend
from tierstore.checkpoint.fragment import FileEntry, Fragment, ValueEntry
from tierstore.checkpoint.paths import marked
from tierstore.checkpoint.store import RunStore
from tierstore.checkpoint.values import NotPlainError, encode
from tierstore.errors import PlanError
from tierstore.image.layout import Chunk, plan_layout
from tierstore.keys import RunKeys
from tierstore.transfer.source import AlignedBuffers
from tierstore.transfer.write import FileWrite, write_files
from tierstore_torch.dcp.metadata import path_text
from tierstore_torch.dcp.notice import Notice
from tierstore_torch.dcp.source import gather_sources
from tierstore_torch.state.arrays import Array, is_large, tensor_of
from tierstore_torch.state.encoding import check_name, saveable
from tierstore_torch.state.items import dtype_name


def is_stored(item: WriteItem) -> bool:
    """Whether an item is a row of the manifest: a shard without elements of a tensor is not."""
    data = item.tensor_data
    return data is None or prod(data.chunk.sizes) > 0 or prod(data.size) == 0


class PlannedShard:
    """One rank's part of a save.

    Args:
        plan: what DCP gave this rank.
        planner: hands out the data.
        rank: this rank.
        segment_bytes: the size at which a segment is closed.

    Attributes:
        values: what of it are no tensors.

    Raises:
        PlanError: a tensor or a value cannot be stored.
    """

    def __init__(self, plan: SavePlan, planner: SavePlanner, rank: int, segment_bytes: int) -> None:
        self._items = plan.items
        self._rank = rank
        paths = plan.planner_data if isinstance(plan.planner_data, dict) else {}
        self._paths = {name: path_text(path) for name, path in paths.items()}
        self._chunks: list[Chunk] = []
        self._resolvers: list[Callable[[], torch.Tensor]] = []
        self.values: list[ValueEntry] = []
        for item in filter(is_stored, plan.items):
            check_name(item.index.fqn)
            if (array := _large_array(item, planner)) is not None:
                self._chunks.append(self._array_chunk(item, array))
                self._resolvers.append(partial(tensor_of, array))
            elif item.type == WriteItemType.BYTE_IO:
                self.values.append(self._value(item, planner))
            else:
                self._chunks.append(self._chunk(item))
                self._resolvers.append(
                    cast("Callable[[], torch.Tensor]", partial(planner.resolve_data, item))
                )
        self._layout = plan_layout(self._chunks, rank=rank, segment_bytes=segment_bytes)

    def write(self, backends: Sequence[Backend], run: str, notice: Notice) -> list[WriteResult]:
        """Write files and fragment to every tier, the first first; what DCP gathers afterwards.

        Raises:
            StorageError: a tier refused.
            IntegrityError: the tensors changed between two tiers.
            PlanError: a tensor is not what the plan says.
        """
        files: list[FileEntry] = []
        for backend in backends:
            files = self._write_files(backend, run, notice, files)
            fragment = Fragment(
                attempt=notice.attempt,
                launch=notice.launch,
                rank=self._rank,
                ranks=tuple(range(notice.world_size)),
                world_size=notice.world_size,
                declared=notice.declared,
                chunks=self._chunks,
                placements=self._layout.placements,
                files=files,
                values=self.values,
            )
            RunStore(backend, run).write_fragment(fragment)
        return self._results(str(notice.attempt))

    def _write_files(
        self, backend: Backend, run: str, notice: Notice, known: Sequence[FileEntry]
    ) -> list[FileEntry]:
        segments = self._layout.segments
        if not segments:
            return []
        capabilities = backend.capabilities
        keys = RunKeys(run).attempt(notice.attempt, notice.launch.nonce)
        largest = max(capabilities.part_size_for(segment.size) for segment in segments)
        buffers = AlignedBuffers(largest, capabilities.concurrency)
        sources = gather_sources(self._layout, self._chunks, self._resolvers, buffers)
        crcs = [entry.crcs for entry in known] if known else [None] * len(segments)
        writes = [
            FileWrite(keys.segment(segment.name), segment.size, source, crcs=row)
            for segment, source, row in zip(segments, sources, crcs, strict=True)
        ]
        with ThreadPoolExecutor(capabilities.concurrency, "tierstore-dcp") as pool:
            written = write_files(backend, writes, pool=pool)
        return [
            FileEntry(segment.name, segment.size, row)
            for segment, row in zip(segments, written, strict=True)
        ]

    def _results(self, attempt: str) -> list[WriteResult]:
        sizes = {(chunk.name, chunk.offsets): chunk.nbytes for chunk in self._chunks}
        lengths = {value.name: len(value.data) for value in self.values}
        lengths |= {chunk.name: chunk.nbytes for chunk in self._chunks}  # of an array
        results = []
        for item in self._items:
            index = item.index
            size = lengths.get(index.fqn, 0)
            if index.offset is not None:
                size = sizes.get((index.fqn, tuple(index.offset)), 0)
            results.append(WriteResult(index, size, attempt))
        return results

    def _chunk(self, item: WriteItem) -> Chunk:
        data = item.tensor_data
        if data is None:
            raise PlanError(f"{item.index.fqn}: the planner planned a tensor without its shape")
        return Chunk(
            item.index.fqn,
            dtype_name(data.properties.dtype),
            tuple(data.size),
            tuple(data.chunk.offsets),
            tuple(data.chunk.sizes),
            self._paths.get(item.index.fqn, ""),
        )

    def _array_chunk(self, item: WriteItem, array: Array) -> Chunk:
        tensor = tensor_of(array)
        name, shape = item.index.fqn, tuple(tensor.shape)
        path = marked(self._paths.get(name, ""), array.dtype.str)
        return Chunk(name, dtype_name(tensor.dtype), shape, (0,) * len(shape), shape, path)

    def _value(self, item: WriteItem, planner: SavePlanner) -> ValueEntry:
        name = item.index.fqn
        path = self._paths.get(name, "")
        if _hands_out_objects(planner):
            with suppress(NotPlainError):
                text = encode(planner.lookup_object(item.index))
                return ValueEntry(name, path, "json", text.encode())
        data = saveable(name, lambda: planner.resolve_data(item))
        if not isinstance(data, io.BytesIO):
            raise PlanError(f"{name}: the planner returned a {type(data).__name__} for a value")
        return ValueEntry(name, path, "opaque", data.getvalue())


def _large_array(item: WriteItem, planner: SavePlanner) -> Array | None:
    """Return the value that is stored as a tensor; None if the item is another."""
    if item.type != WriteItemType.BYTE_IO or not _hands_out_objects(planner):
        return None
    value = planner.lookup_object(item.index)
    return value if is_large(value) else None


def _hands_out_objects(planner: SavePlanner) -> TypeGuard[DefaultSavePlanner]:
    """Whether a value can be had before the planner pickles it."""
    if not isinstance(planner, DefaultSavePlanner):
        return False
    kind = type(planner)
    return (
        kind.resolve_data is DefaultSavePlanner.resolve_data
        and kind.transform_object is DefaultSavePlanner.transform_object
    )
