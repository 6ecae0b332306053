"""Who saves what: decided once by rank 0 from what every rank offers. Pure; no torch, no I/O.

A chunk that several ranks hold is written by one of them: the least loaded, largest chunks first.
Nothing depends on order of arrival, so equal offers give equal plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal

from tierstore.errors import PlanError

PER_RANK_HINT = (
    "wrap it in tierstore_torch.per_rank(...) if every rank has its own, "
    "or make it the same on all ranks"
)

SMALL = 4096
"""Bytes of the largest chunk that is compared at every save; to compare a model would take long."""

Key = tuple[str, int]
"""A leaf's name and the CRC32C of its path."""


@dataclass(frozen=True, slots=True)
class ChunkOffer:
    """A chunk that a rank could write.

    Attributes:
        name: of the tensor.
        path: CRC32C of its path.
        dtype: torch's name of it.
        shape: of the whole tensor.
        offsets: of the chunk.
        sizes: of the chunk.
        nbytes: of the chunk.
        origin: equal for chunks that the tensor library says are replicas; 0 if it does not.
        inside: equal where it is in the same kinds of containers; 0 if they are dicts and lists.
    """

    name: str
    path: int
    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    nbytes: int
    origin: int
    inside: int = 0


@dataclass(frozen=True, slots=True)
class ValueOffer:
    """A plain value that a rank could write; `crc` is of its encoding."""

    name: str
    path: int
    crc: int


@dataclass(frozen=True, slots=True)
class Offer:
    """All that one rank could write."""

    chunks: Sequence[ChunkOffer]
    values: Sequence[ValueOffer]


@dataclass(slots=True)
class Shared:
    """What one rank has in common with others; empty if it is not one of them."""

    values: list[int] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Share:
    """What one rank has to do.

    Attributes:
        chunks: indices into its offer's chunks: those it writes.
        values: likewise.
        compare: indices of chunks whose contents must be compared with other ranks'.
        comparing: whether any rank has something to compare, so that all take part.
        shared: what is compared again at every save: for each set of ranks that have something in
            common, the values and the small chunks (indices), in the same order on all of them.
        ambiguous: names that mean different leaves, so that they need their exact name.
        unmarked: names of tensors that are in a tuple on one rank and in a list on another, so that
            no rank says which.
        declared: how many chunks and values each rank writes, in rank order.
    """

    chunks: list[int] = field(default_factory=list)
    values: list[int] = field(default_factory=list)
    compare: list[int] = field(default_factory=list)
    comparing: bool = False
    shared: tuple[Shared, ...] = ()
    ambiguous: frozenset[str] = frozenset()
    unmarked: frozenset[str] = frozenset()
    declared: tuple[int, ...] = ()


@dataclass(slots=True)
class _Box:
    sizes: tuple[int, ...]
    nbytes: int
    origin: int  # of all holders; 0 if they differ
    holders: list[tuple[int, int]]  # rank, index in its offer

    @property
    def doubtful(self) -> bool:
        """Whether nobody vouches for the holders' contents being equal."""
        return not self.origin


@dataclass(slots=True)
class _Tensor:
    rank: int  # the first that offered it
    dtype: str
    shape: tuple[int, ...]
    inside: int
    mixed: bool = False
    boxes: dict[tuple[int, ...], _Box] = field(default_factory=dict)


def decide(offers: Sequence[Offer]) -> list[Share]:
    """Return each rank's part.

    Raises:
        PlanError: the ranks contradict each other about a tensor or a value, or leave a part of a
            tensor to nobody.
    """
    tensors = _collect(offers)
    parts = [Share() for _ in offers]
    _give_values(offers, tensors, parts)
    _give_chunks(tensors, parts)
    comparing = any(part.compare for part in parts)
    ambiguous = _ambiguous(key for offer in offers for key in _keys(offer))
    unmarked = frozenset(name for (name, _), tensor in tensors.items() if tensor.mixed)
    declared = tuple(len(part.chunks) + len(part.values) for part in parts)
    for part, shared in zip(parts, _share(offers, tensors), strict=True):
        part.shared = shared
        part.chunks.sort()
        part.comparing, part.declared = comparing, declared
        part.ambiguous, part.unmarked = ambiguous, unmarked
    return parts


def compare(offers: Sequence[Sequence[tuple[str, tuple[int, ...], int]]]) -> list[None]:
    """Check that what is taken for replicas is equal.

    Args:
        offers: by rank, (name, offsets, CRC32C) of what `Share.compare` asked for.

    Raises:
        PlanError: two ranks differ.

    Returns:
        None for each rank: there is nothing more to say.
    """
    seen: dict[tuple[str, tuple[int, ...]], tuple[int, int]] = {}
    for rank, offer in enumerate(offers):
        for name, offsets, crc in offer:
            first, known = seen.setdefault((name, offsets), (rank, crc))
            if known != crc:
                raise _differs("tensors", name, first, rank)
    return [None] * len(offers)


def _collect(offers: Sequence[Offer]) -> dict[Key, _Tensor]:
    tensors: dict[Key, _Tensor] = {}
    for rank, offer in enumerate(offers):
        for index, chunk in enumerate(offer.chunks):
            key = (chunk.name, chunk.path)
            tensor = tensors.get(key)
            if tensor is None:
                tensor = tensors[key] = _Tensor(rank, chunk.dtype, chunk.shape, chunk.inside)
            elif (tensor.dtype, tensor.shape) != (chunk.dtype, chunk.shape):
                raise PlanError(
                    f"{chunk.name}: rank {tensor.rank} holds a {tensor.dtype} of shape "
                    f"{tensor.shape}, rank {rank} a {chunk.dtype} of shape {chunk.shape}",
                    hint=PER_RANK_HINT,
                )
            tensor.mixed |= tensor.inside != chunk.inside
            _add(tensor, rank, index, chunk)
    for (name, _), tensor in tensors.items():
        _check_complete(name, tensor)
    return tensors


def _add(tensor: _Tensor, rank: int, index: int, chunk: ChunkOffer) -> None:
    box = tensor.boxes.get(chunk.offsets)
    if box is None:
        box = tensor.boxes[chunk.offsets] = _Box(chunk.sizes, chunk.nbytes, chunk.origin, [])
    elif box.sizes != chunk.sizes:
        raise PlanError(
            f"{chunk.name}: at offset {chunk.offsets} rank {box.holders[0][0]} holds a part of "
            f"sizes {box.sizes}, rank {rank} one of sizes {chunk.sizes}",
            hint="shard a tensor in the same way on all ranks that hold it",
        )
    if box.origin != chunk.origin:
        box.origin = 0
    box.holders.append((rank, index))


def _check_complete(name: str, tensor: _Tensor) -> None:
    held = sum(prod(box.sizes) for box in tensor.boxes.values())
    if held != prod(tensor.shape):
        raise PlanError(
            f"{name}: the ranks hold {held} of the {prod(tensor.shape)} elements of its shape "
            f"{tensor.shape}",
            hint="save with every rank that holds a part of it, and shard it one way only",
        )


def _give_values(
    offers: Sequence[Offer], tensors: dict[Key, _Tensor], parts: Sequence[Share]
) -> None:
    seen: dict[Key, tuple[int, int]] = {}
    for rank, offer in enumerate(offers):
        for index, value in enumerate(offer.values):
            key = (value.name, value.path)
            if key in tensors:
                raise PlanError(
                    f"{value.name}: a tensor on rank {tensors[key].rank}, a value on rank {rank}",
                    hint=PER_RANK_HINT,
                )
            if key not in seen:
                seen[key] = (rank, value.crc)
                parts[rank].values.append(index)
            elif seen[key][1] != value.crc:
                raise _differs("values", value.name, seen[key][0], rank)


def _give_chunks(tensors: dict[Key, _Tensor], parts: Sequence[Share]) -> None:
    loads = [0] * len(parts)
    shared: list[tuple[int, str, tuple[int, ...], _Box]] = []
    for (name, _), tensor in tensors.items():
        for offsets, box in tensor.boxes.items():
            if len(box.holders) > 1:
                shared.append((-box.nbytes, name, offsets, box))
                if box.doubtful:
                    for rank, index in box.holders:
                        parts[rank].compare.append(index)
                continue
            rank, index = box.holders[0]
            parts[rank].chunks.append(index)
            loads[rank] += box.nbytes
    shared.sort(key=lambda item: item[:3])
    for _, _, _, box in shared:
        rank, index = min(box.holders, key=lambda holder: (loads[holder[0]], holder))
        parts[rank].chunks.append(index)
        loads[rank] += box.nbytes


def _share(offers: Sequence[Offer], tensors: dict[Key, _Tensor]) -> list[tuple[Shared, ...]]:
    """Return for each rank what it has in common with others, by set of ranks."""
    found: dict[tuple[int, ...], list[Shared]] = {}
    for kind, holders in _common(offers, tensors):
        ranks = tuple(rank for rank, _ in holders)
        parts = found.setdefault(ranks, [Shared() for _ in offers])
        for rank, index in holders:
            getattr(parts[rank], kind).append(index)
    return [tuple(parts[rank] for parts in found.values()) for rank in range(len(offers))]


def _common(
    offers: Sequence[Offer], tensors: dict[Key, _Tensor]
) -> Iterator[tuple[Literal["values", "chunks"], list[tuple[int, int]]]]:
    """Yield what several ranks hold and could hold differently, with (rank, index) of each."""
    values: dict[Key, list[tuple[int, int]]] = {}
    for rank, offer in enumerate(offers):
        for index, value in enumerate(offer.values):
            values.setdefault((value.name, value.path), []).append((rank, index))
    yield from (("values", holders) for holders in values.values() if len(holders) > 1)
    for tensor in tensors.values():
        for box in tensor.boxes.values():
            if len(box.holders) > 1 and box.doubtful and box.nbytes <= SMALL:
                yield "chunks", box.holders


def _keys(offer: Offer) -> Iterable[Key]:
    yield from ((chunk.name, chunk.path) for chunk in offer.chunks)
    yield from ((value.name, value.path) for value in offer.values)


def _ambiguous(keys: Iterable[Key]) -> frozenset[str]:
    paths: dict[str, int] = {}
    return frozenset(name for name, path in keys if paths.setdefault(name, path) != path)


def _differs(what: str, name: str, first: int, second: int) -> PlanError:
    return PlanError(
        f"{name}: ranks {first} and {second} hold different {what} under this name, and only one "
        "would be saved",
        hint=PER_RANK_HINT,
    )
