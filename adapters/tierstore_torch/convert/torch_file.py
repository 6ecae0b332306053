"""Files of `torch.save`.

Reading: the file is mapped, so what torch makes of it costs no memory, and only classes that
`weights_only` allows are made. The tensors' bytes are then read from the file where they lie: pages
of a mapping would count as memory of this process.

Writing: torch lays the file out around holes, which are filled with what the tiers hold. Nothing
but the part that is being sent is in memory. The CRC32 of a record with a tensor is 0, as under
`torch.serialization.skip_data`: torch does not look at it, `unzip -t` does.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import torch

from tierstore.checkpoint.fragment import ValueEntry
from tierstore.convert.files import FilePlan
from tierstore.convert.formats import (
    TORCH_SUFFIXES,
    Foreign,
    Format,
    Incoming,
    Layout,
    Outgoing,
    reader_of,
)
from tierstore.convert.place import Place
from tierstore.errors import ConfigError, FormatError, PlanError, TierstoreError, UnsafePickleError
from tierstore.image.layout import Chunk
from tierstore.regular import open_regular
from tierstore_torch import torch_private
from tierstore_torch.convert.archive import check_archive
from tierstore_torch.convert.skeleton import check_dtypes, skeleton
from tierstore_torch.convert.strided import is_row_major, strided_reader
from tierstore_torch.convert.tree import loaded
from tierstore_torch.state.encoding import encode_value
from tierstore_torch.state.flatten import Leaf, Tree
from tierstore_torch.state.items import dtype_name, is_plain, is_storable
from tierstore_torch.state.nested import nested


@contextmanager
def read(place: Place, allow_pickle: bool) -> Iterator[Incoming]:
    """Open a file of `torch.save` that holds a state dict.

    Raises:
        UnsafePickleError: it holds classes that are not allowed without `allow_pickle`.
        FormatError: it is damaged, or of the format before torch 1.6.
        PlanError: it holds something else than a dict or a list, or a tensor without numbers.
        ConfigError: it is in a remote store.
    """
    if not place.name:
        raise ConfigError(f"{place.url} is a folder", hint="name a file")
    state = _load(place, allow_pickle)
    tree = Tree(state, rank=0)
    if any(not leaf.name and leaf.path == "[]" for leaf in tree.leaves):
        raise PlanError(
            f"{place.url} holds a {type(state).__name__}", hint="a dict of tensors is wanted"
        )
    where = _mapped_at(place)
    times = Counter(leaf.name for leaf in tree.leaves)
    items: list[Foreign] = []
    values: list[ValueEntry] = []
    for leaf, value in zip(tree.leaves, tree.values, strict=True):
        name = leaf.exact_name if times[leaf.name] > 1 else leaf.name
        if is_storable(value):
            items.append(Foreign(_chunk(name, leaf, value), _reader(place, where, value)))
        else:
            values.append(ValueEntry(name, leaf.path, *encode_value(name, value)))
    yield Incoming(items, values)


def _load(place: Place, allow_pickle: bool) -> Any:
    path = place.path()
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            check_archive(file, place.url)
    except OSError as error:
        raise FormatError(f"{place.url} cannot be read: {error.strerror}") from error
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=not allow_pickle)
    except UnpicklingError as error:
        if allow_pickle:
            raise FormatError(f"{place.url} cannot be unpickled: {error}") from error
        what = str(error).partition("WeightsUnpickler error: ")[2].partition("\n")[0]
        raise UnsafePickleError(
            f"{place.url} holds more than tensors and plain values: {what or error}",
            hint="--allow-pickle loads it all the same; only if you trust who wrote it",
        ) from error
    except TierstoreError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise FormatError(f"{place.url}: torch cannot load it: {reason}") from error


def _chunk(name: str, leaf: Leaf, value: torch.Tensor) -> Chunk:
    if torch_private.is_fake(value):
        raise PlanError(f"{name}: a meta tensor has no numbers", hint="leave it out with --exclude")
    if not is_plain(value):
        raise PlanError(
            f"{name} is a {type(value).__name__}, of which one file holds a part only",
            hint="save it with torch.distributed.checkpoint and import that",
        )
    shape = tuple(value.shape)
    return Chunk(name, dtype_name(value.dtype), shape, (0,) * len(shape), shape, leaf.path)


def _reader(
    place: Place, where: Callable[[int, int], int | None], value: torch.Tensor
) -> Callable[[int, memoryview], None]:
    value = value.detach()
    if is_row_major(value):
        offset = where(value.data_ptr(), value.numel() * value.element_size())
        if offset is not None:
            return reader_of(place.backend, place.name, offset)
    return strided_reader(value)


def _mapped_at(place: Place) -> Callable[[int, int], int | None]:
    """Return what tells at which byte of the file an address lies; None if it is no part of it."""
    inode = place.path().stat().st_ino
    spans = []
    with open("/proc/self/maps") as lines:  # noqa: PTH123
        for line in lines:
            addresses, _, offset, _, number, *_ = line.split(maxsplit=5)
            if int(number) == inode:
                low, high = (int(each, 16) for each in addresses.split("-"))
                spans.append((low, high, int(offset, 16)))

    def where(address: int, length: int) -> int | None:
        for low, high, offset in spans:
            if length and low <= address and address + length <= high:
                return offset + address - low
        return None

    return where


def write(outgoing: Outgoing, name: str) -> Layout:
    """Lay the state dict out as one file.

    Raises:
        PlanError: torch cannot save a tensor's dtype, or names contradict each other.
        UnsafePickleError: a value is a pickle, and pickles are not allowed.
    """
    check_dtypes(outgoing.items)
    entries: list[tuple[str, str, Any]] = [
        (value.name, value.path, loaded(value, outgoing.allow_pickle)) for value in outgoing.values
    ]
    entries += [(item.chunk.name, item.chunk.path, item) for item in outgoing.items]
    return Layout([FilePlan(name, skeleton(nested(entries)))])


FORMAT = Format(
    suffixes=TORCH_SUFFIXES,
    folder=False,
    read=read,
    write=write,
    owns=lambda _: False,
)
