"""What one rank saves: planned with the other ranks once, then only looked over at each save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch.distributed.tensor import DTensor

from tierstore.blocks import crc32c, crc32c_of
from tierstore.checkpoint.fragment import ValueEntry
from tierstore.checkpoint.paths import Containers
from tierstore.errors import TierstoreError
from tierstore.image.layout import Chunk, plan_layout
from tierstore_torch import torch_private
from tierstore_torch.group import Group
from tierstore_torch.state import division
from tierstore_torch.state.arrays import tensor_of
from tierstore_torch.state.encoding import encode_value, unsaveable
from tierstore_torch.state.flatten import Leaf, Tree
from tierstore_torch.state.items import byte_view, is_storable, local_tensor, tensor_chunks
from tierstore_torch.state.staging import StagedPlan

_Encoded = tuple[Literal["json", "opaque"], bytes]

_NOT_MINE = -(1 << 40)  # below every CRC32C and its negative


def plan_shard(state: object, group: Group, segment_bytes: int) -> RankShard:
    """Agree with the other ranks who saves what of `state`. Collective.

    Raises:
        PlanError: on all ranks, whatever is wrong on any.
    """
    found: list[_Scan] = []

    def offer() -> division.Offer:
        found.append(_Scan(state, group.rank))
        return found[0].offer()

    part = group.centrally(offer, division.decide)
    scan = found[0]
    if part.comparing:
        group.centrally(lambda: scan.contents(part.compare), division.compare)
    return group.together(lambda: RankShard(scan, part, group.rank, segment_bytes))


@dataclass(frozen=True, slots=True)
class _Signature:
    """What must not change in a tensor for the plan to stay valid.

    Attributes:
        chunks: the leaf's chunks, only where they are not simply its local tensor.
    """

    cls: type[Any]
    dtype: torch.dtype
    shape: torch.Size
    mesh: object
    placements: object
    local_shape: torch.Size
    chunks: tuple[Chunk, ...] | None

    @classmethod
    def of(cls, value: Any, chunks: Sequence[tuple[Chunk, torch.Tensor]]) -> _Signature:
        sharded = isinstance(value, DTensor)
        local = local_tensor(value) if isinstance(value, torch.Tensor) else None
        simple = (
            local is not None
            and torch_private.local_shards(value) is None
            and len(chunks) <= 1
            and all(tensor.shape == local.shape for _, tensor in chunks)
        )
        return cls(
            type(value),
            value.dtype,
            value.shape,
            value.device_mesh if sharded else None,
            value.placements if sharded else None,
            value.shape if local is None else local.shape,
            None if simple else tuple(chunk for chunk, _ in chunks),
        )

    def local(self, value: Any) -> torch.Tensor | None:
        """Return the local tensor of a leaf that is as it was, or None."""
        if type(value) is not self.cls or value.shape != self.shape or value.dtype != self.dtype:
            return None
        if self.mesh is None:
            return value if value.layout is torch.strided else None
        if value.placements != self.placements or value.device_mesh != self.mesh:
            return None
        local: torch.Tensor = value.to_local()
        return local if local.shape == self.local_shape else None


class _Scan:
    """A state as this rank sees it at the time of planning."""

    @torch.no_grad()
    def __init__(self, state: object, rank: int) -> None:
        self.tree = Tree(state, rank=rank)
        self.tree.check_in_place(state)
        self.values = self.tree.values
        self.signatures: list[_Signature | None] = []
        self.chunks: list[Chunk] = []
        self.tensors: list[torch.Tensor] = []
        self.places: list[tuple[int, int]] = []  # leaf, position among its chunks
        kinds: dict[_Signature, _Signature] = {}  # of many tensors there are few
        for index, (leaf, value) in enumerate(zip(self.tree.leaves, self.values, strict=True)):
            try:
                signature = self._look(index, leaf, value)
            except TierstoreError:
                raise
            except Exception as error:  # torch does not let it be looked at
                raise unsaveable(leaf.name, error) from error
            if signature is not None:
                signature = kinds.setdefault(signature, signature)
            self.signatures.append(signature)
        self.encoded = _encoded(self.tree, self.values, self.value_leaves)

    def _look(self, index: int, leaf: Leaf, value: Any) -> _Signature | None:
        """Note one leaf's chunks and return what must stay as it is; None if it is a value."""
        held = tensor_of(value) if leaf.array else value
        if not is_storable(held):
            return None
        chunks = tensor_chunks(leaf.name, held, leaf.stored_path)
        for position, (chunk, tensor) in enumerate(chunks):
            self.chunks.append(chunk)
            self.tensors.append(tensor)
            self.places.append((index, position))
        return _Signature.of(held, chunks)

    @property
    def value_leaves(self) -> list[int]:
        """Which leaves are values."""
        return [index for index, known in enumerate(self.signatures) if known is None]

    def offer(self) -> division.Offer:
        """Return what this rank could write."""
        leaves = self.tree.leaves
        paths = [crc32c(leaf.path.encode()) for leaf in leaves]
        chunks = [
            division.ChunkOffer(
                chunk.name,
                paths[leaf],
                chunk.dtype,
                chunk.shape,
                chunk.offsets,
                chunk.sizes,
                chunk.nbytes,
                _origin(self.values[leaf]),
                leaves[leaf].inside.digest,
            )
            for chunk, (leaf, _) in zip(self.chunks, self.places, strict=True)
        ]
        values = [
            division.ValueOffer(leaves[i].name, paths[i], crc32c(data))
            for i, (_, data) in self.encoded.items()
        ]
        return division.Offer(chunks, values)

    def contents(self, indices: Sequence[int]) -> list[tuple[str, tuple[int, ...], int]]:
        """Return name, offsets and CRC32C of the chunks that others hold too."""
        return [
            (self.chunks[i].name, self.chunks[i].offsets, crc32c(_bytes_of(self.tensors[i])))
            for i in indices
        ]


class RankShard:
    """One rank's part of a plan, good for as many saves as the structure stays the same.

    Attributes:
        staged: the chunks it writes, their places in the image, and the copy.
        declared: how many chunks and values each rank writes, in rank order.
        nbytes: of the chunks it writes.
        digests: of what this rank has in common with others, as of the last `take`: for each set of
            ranks the CRC32C and its negative, so that the largest of all ranks tell a difference.
    """

    def __init__(self, scan: _Scan, part: division.Share, rank: int, segment_bytes: int) -> None:
        self._tree = scan.tree
        self._signatures = scan.signatures
        self._places = [scan.places[index] for index in part.chunks]
        self._owned_values = [scan.value_leaves[index] for index in part.values]
        self._ambiguous, self._unmarked = part.ambiguous, part.unmarked
        self._shared = [
            (
                [scan.value_leaves[index] for index in shared.values],
                [scan.places[index] for index in shared.chunks],
            )
            for shared in part.shared
        ]
        self.digests = [_NOT_MINE] * 2 * len(part.shared)
        self._value_leaves = scan.value_leaves
        self._encoded = scan.encoded
        self.declared = part.declared
        chunks = [
            self._renamed(scan.chunks[index], scan.tree.leaves[scan.places[index][0]])
            for index in part.chunks
        ]
        layout = plan_layout(chunks, rank=rank, segment_bytes=segment_bytes)
        self.nbytes = sum(chunk.nbytes for chunk in chunks)
        self.staged = StagedPlan(layout, chunks, [scan.tensors[index] for index in part.chunks])

    @torch.no_grad()
    def take(self, state: object) -> bool:
        """Look at another state of this structure; False if it is not.

        Raises:
            PlanError: a value cannot be saved.
        """
        values = self._tree.match(state)
        if values is None:
            return False
        locals_: list[Any] = []
        for leaf, known, value in zip(self._tree.leaves, self._signatures, values, strict=True):
            if known is None:
                if is_storable(value):
                    return False
                locals_.append(None)
                continue
            if leaf.array:
                value = tensor_of(value)  # noqa: PLW2901
            held = known.local(value) if known.chunks is None else _held(leaf, known, value)
            if held is None:
                return False
            locals_.append(held)

        def chunk(place: tuple[int, int]) -> torch.Tensor:
            held: torch.Tensor | list[torch.Tensor] = locals_[place[0]]
            return held[place[1]] if isinstance(held, list) else held

        self.staged.sources = [chunk(place) for place in self._places]
        self._encoded = _encoded(self._tree, values, self._value_leaves)
        digests: list[int] = []
        for leaves, places in self._shared:
            texts = [self._encoded[leaf][1] for leaf in leaves]
            digests += _digest(texts, [chunk(place) for place in places])
        self.digests = digests  # only when all are there: every rank sends as many
        return True

    def value_entries(self) -> list[ValueEntry]:
        """Return the values that this rank writes."""
        leaves = self._tree.leaves
        return [
            ValueEntry(self._name(leaves[index]), leaves[index].stored_path, *self._encoded[index])
            for index in self._owned_values
        ]

    def release(self) -> None:
        """Forget the state: between saves no tensor of it is kept alive."""
        self._encoded = {}
        self.staged.sources = []

    def _renamed(self, chunk: Chunk, leaf: Leaf) -> Chunk:
        if leaf.name in self._unmarked:
            chunk = replace(chunk, path=replace(leaf, inside=Containers()).stored_path)
        name = self._name(leaf)
        return chunk if name == chunk.name else replace(chunk, name=name)

    def _name(self, leaf: Leaf) -> str:
        return leaf.exact_name if leaf.name in self._ambiguous else leaf.name


def _encoded(tree: Tree, values: Sequence[Any], leaves: Sequence[int]) -> dict[int, _Encoded]:
    return {index: encode_value(tree.leaves[index].name, values[index]) for index in leaves}


def _digest(texts: Sequence[bytes], tensors: Sequence[torch.Tensor]) -> tuple[int, int]:
    if not texts and not tensors:
        return _NOT_MINE, _NOT_MINE
    total = crc32c_of(texts)
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for tensor in tensors:
        flat = torch_private.copyable(tensor).resolve_conj().resolve_neg().reshape(-1)
        by_device.setdefault(tensor.device, []).append(flat.view(torch.uint8))
    for parts in by_device.values():
        total = crc32c(_bytes_of(torch.cat(parts)), total)
    return total, -total


def _held(leaf: Leaf, known: _Signature, value: Any) -> list[torch.Tensor] | None:
    if type(value) is not known.cls:
        return None
    pairs = tensor_chunks(leaf.name, value, leaf.stored_path)
    same = tuple(chunk for chunk, _ in pairs) == known.chunks
    return [tensor for _, tensor in pairs] if same else None


def _origin(value: object) -> int:
    """The same number, not 0, for DTensors over the same ranks: their replicas are equal."""
    if not isinstance(value, DTensor):
        return 0
    return 1 + crc32c(repr(torch_private.mesh_ranks(value.device_mesh)).encode())


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    whole = torch_private.copyable(tensor).cpu().contiguous()
    return byte_view(whole.resolve_conj().resolve_neg())
