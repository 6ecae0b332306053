"""DCP's `.metadata` is a pickle; of what it says only what is understood is made into objects."""

from __future__ import annotations

import io
import pickle
from math import prod
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from tierstore.errors import FormatError, UnsafePickleError
from tierstore_torch import torch_private
from tierstore_torch.convert.pickled import Items, Made, Name, read_pickle

MOST = 256 * 1024 * 1024
"""Bytes of a `.metadata`; one of a million chunks has 100 MB."""

_DCP = "torch.distributed.checkpoint.metadata"
_STORAGE_INFO = "torch.distributed.checkpoint.filesystem._StorageInfo"
_SIZE = "torch.Size"
_ALLOWED = {
    *(
        f"{_DCP}.{name}"
        for name in (
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    *(  # of a checkpoint_id
        f"{module}.{name}"
        for module in ("pathlib", "pathlib._local")
        for name in ("Path", "PosixPath", "PurePath", "PurePosixPath")
    ),
    _STORAGE_INFO,
    _SIZE,
    "torch.serialization._get_layout",
}
_LARGEST = 2**63
_MOST_DIMENSIONS = 64
_SHOWN = 100  # signs of a name


def load_metadata(data: bytes, where: str, *, allow_pickle: bool) -> Metadata:
    """Return DCP's metadata.

    Args:
        data: the whole file.
        where: its place, for errors.
        allow_pickle: let it be any pickle, which can run any code.

    Raises:
        UnsafePickleError: it names something else than DCP's metadata classes.
        FormatError: it is damaged, or something else.
    """
    try:
        # S301: that is what the caller asked for.
        found = pickle.load(io.BytesIO(data)) if allow_pickle else _restricted(data)  # noqa: S301
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{where}: {error.message}", hint=error.hint) from None
    except Exception as error:
        text = f"{where} is no metadata of DCP: {error!r:.200}"
        raise FormatError(
            text, hint="copy the folder again, or restore it from a backup"
        ) from error
    if not isinstance(found, Metadata):
        raise FormatError(f"{where} holds a {type(found).__name__}, not DCP's metadata")
    return found


def _find(module: str, name: str) -> object:
    """Return what stands for what a pickle names, if it is harmless."""
    known = f"{module}.{name}"
    if known in _ALLOWED:
        return Name(known)
    if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
        return dtype
    raise UnsafePickleError(
        f"it names {known[:_SHOWN]}",
        hint="--allow-pickle loads it all the same; only if you trust who wrote it",
    )


def _restricted(data: bytes) -> Any:
    found = read_pickle(data, _find)
    if type(found) is not Made or found.name != f"{_DCP}.Metadata":
        return found
    fields = _fields(found, "Metadata")
    planned = fields.get("planner_data")
    return Metadata(
        state_dict_metadata={
            _text(name): _entry(entry) for name, entry in _items(fields["state_dict_metadata"])
        },
        planner_data=dict(filter(_is_path, planned)) if type(planned) is Items else None,
        storage_data=dict(map(_stored, _items(fields["storage_data"]))),
    )


def _fields(made: Any, name: str) -> dict[str, Any]:
    """Return the fields of a dataclass of DCP's."""
    if type(made) is not Made or made.name.rpartition(".")[2] != name:
        raise ValueError(f"no {name}")
    return {_text(field): value for field, value in _items(made.state or Items())}


def _items(value: Any) -> Items:
    if type(value) is not Items:
        raise ValueError("no dict")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("no name")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise ValueError("no number from 0 up")
    return value


def _size(value: Any) -> torch.Size:
    """Return what was made as torch.Size((1, 2))."""
    if type(value) is not Made or value.name != _SIZE or len(value.args) != 1:
        raise ValueError("no torch.Size")
    numbers = value.args[0]
    if type(numbers) is not tuple or len(numbers) > _MOST_DIMENSIONS:
        raise ValueError("no torch.Size")
    return torch.Size(map(_whole, numbers))


def _entry(made: Any) -> STORAGE_TYPES:
    if type(made) is Made and made.name == f"{_DCP}.BytesStorageMetadata":
        return BytesStorageMetadata()
    fields = _fields(made, "TensorStorageMetadata")
    properties, size, chunks = fields["properties"], _size(fields["size"]), fields["chunks"]
    if type(properties) is not Made or type(properties.state) is not tuple:
        raise ValueError("no TensorProperties")
    dtype = properties.state[0]
    if not isinstance(dtype, torch.dtype) or prod(size) * dtype.itemsize >= _LARGEST:
        raise ValueError("no dtype, or a tensor that nobody has")
    if type(chunks) is not list:
        raise ValueError("no chunks")
    return TensorStorageMetadata(
        TensorProperties(dtype=dtype), size, [_chunk(chunk, size) for chunk in chunks]
    )


def _chunk(made: Any, size: torch.Size) -> ChunkStorageMetadata:
    fields = _fields(made, "ChunkStorageMetadata")
    offsets, sizes = _size(fields["offsets"]), _size(fields["sizes"])
    if not len(offsets) == len(sizes) == len(size):
        raise ValueError("a chunk of other dimensions than its tensor")
    if any(a + b > c for a, b, c in zip(offsets, sizes, size, strict=True)):
        raise ValueError("a chunk outside of its tensor")
    return ChunkStorageMetadata(offsets, sizes)


def _is_path(item: tuple[Any, Any]) -> bool:
    """Whether it is a name and the keys and indices that lead there; others have no meaning."""
    name, path = item
    return type(name) is str and type(path) is tuple and all(map(_is_step, path))


def _is_step(step: Any) -> bool:
    return type(step) is str or (type(step) is int and 0 <= step < _LARGEST)


def _stored(item: tuple[Any, Any]) -> tuple[MetadataIndex, Any]:
    """Return where an item lies."""
    key, place = _fields(item[0], "MetadataIndex"), _fields(item[1], "_StorageInfo")
    offset, index = key.get("offset"), key.get("index")
    name = _text(key["fqn"])
    if place.get("transform_descriptors"):
        raise FormatError(f"{name[:_SHOWN]} is stored through an extension of DCP")
    return MetadataIndex(
        name,
        None if offset is None else _size(offset),
        None if index is None else _whole(index),
    ), torch_private.storage_info(
        _text(place["relative_path"]), _whole(place["offset"]), _whole(place["length"])
    )
