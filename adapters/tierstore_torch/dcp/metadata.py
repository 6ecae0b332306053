"""DCP's metadata of a checkpoint, made from the manifest as far as it is looked at.

A million eager metadata objects take seconds; a planner looks at those of its own state dict.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar, cast

import torch
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from tierstore.checkpoint.fragment import ValueEntry
from tierstore.checkpoint.manifest import Manifest, Tensor
from tierstore.checkpoint.paths import array_mark, parse_path
from tierstore_torch.state.items import dtype_named

V = TypeVar("V")
Path = tuple[str | int, ...]
"""Keys and indices that lead to a leaf, as DCP's planners have them."""


def metadata_of(manifest: Manifest, meta: StorageMeta) -> Metadata:
    """Return a checkpoint's metadata; entries are made when they are asked for."""
    return _metadata(_Lazy(manifest, _entry), _Lazy(manifest, _path_of), meta)


def metadata_failing(error: Exception, meta: StorageMeta) -> Metadata:
    """Return metadata that raises `error` at the first look.

    DCP turns an error of `read_metadata` on one rank into other collectives on that rank alone,
    and its type into AssertionError. An error inside the planning step reaches every rank as it is.
    """
    return _metadata(_Failing(error), _Failing(error), meta)


def path_text(path: Path) -> str:
    """Return a planner's path as the manifest holds it.

    It is marked as DCP's: its keys are strings whatever they were, so it says less than a name.
    """
    return json.dumps({"dcp": path})


def _metadata(entries: Mapping[str, Any], paths: Mapping[str, Any], meta: StorageMeta) -> Metadata:
    return Metadata(
        state_dict_metadata=cast("dict[str, STORAGE_TYPES]", entries),
        planner_data=paths,
        storage_meta=meta,
    )


def _entry(found: Tensor | ValueEntry) -> STORAGE_TYPES:
    if isinstance(found, ValueEntry) or array_mark(found.path):
        return BytesStorageMetadata()
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=dtype_named(found.dtype)),
        size=torch.Size(found.shape),
        chunks=_chunks(found),
    )


def _chunks(tensor: Tensor) -> list[ChunkStorageMetadata]:
    return [
        ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        for offsets, sizes in zip(tensor.offsets.tolist(), tensor.sizes.tolist(), strict=True)
    ]


def _path_of(found: Tensor | ValueEntry) -> Path:
    return path_of(found.name, found.path)


def path_of(name: str, path: str) -> Path:
    """Return where DCP's planners have what is stored; its name where that is all that is known."""
    steps = parse_path(path)
    if isinstance(steps, dict):
        return tuple(steps["dcp"])
    parts = [step if isinstance(step, str) else _part(step) for step in steps]
    known = tuple(part for part in parts if part is not None)
    return known if known and len(known) == len(parts) else (name,)


def _part(step: dict[str, Any]) -> str | int | None:
    """A step of `flatten` as DCP would have it; None for a rank's own part, which DCP has not."""
    if "item" in step:
        return int(step["item"])
    key = step.get("key")
    return str(key) if isinstance(key, (bool, int, float)) else None


class _Lazy(Mapping[str, V]):
    """All names of a manifest, tensors first; what belongs to one is made once."""

    def __init__(self, manifest: Manifest, make: Callable[[Tensor | ValueEntry], V]) -> None:
        self._manifest = manifest
        self._make = make
        self._made: dict[str, V] = {}

    def __getitem__(self, name: str) -> V:
        if name not in self._made:
            found = self._manifest.find(name) or self._manifest.find_value(name)
            if found is None:
                raise KeyError(name)
            self._made[name] = self._make(found)
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None  # asked for next, so made

    def __iter__(self) -> Iterator[str]:
        yield from self._manifest.names()
        for value in self._manifest.values():
            yield value.name

    def __len__(self) -> int:
        return len(self._manifest) + sum(1 for _ in self._manifest.values())


class _Failing(Mapping[str, Any]):
    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getitem__(self, name: str) -> NoReturn:
        raise self._error

    def __contains__(self, name: object) -> NoReturn:
        raise self._error

    def __iter__(self) -> Iterator[str]:
        raise self._error

    def __len__(self) -> NoReturn:
        raise self._error
