"""Folders of `torch.distributed.checkpoint`, as its FileSystemWriter lays them out.

`.metadata` says where each item lies in the `*.distcp` files; an item is a file of `torch.save` in
itself, of one tensor or one value. Of an item only its directory is read before its bytes.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from tierstore.checkpoint.fragment import ValueEntry
from tierstore.convert.files import FilePlan
from tierstore.convert.formats import (
    Foreign,
    Format,
    Incoming,
    Layout,
    Outgoing,
    StoredTensor,
    reader_of,
)
from tierstore.convert.place import Place
from tierstore.errors import FormatError, NotFoundError, PlanError, TierstoreError
from tierstore.image.layout import Chunk
from tierstore.keys import check_key
from tierstore_torch import torch_private
from tierstore_torch.convert.archive import check_archive
from tierstore_torch.convert.skeleton import check_dtypes, skeleton
from tierstore_torch.convert.strided import is_row_major, strided_reader
from tierstore_torch.convert.tree import loaded
from tierstore_torch.convert.unpickle import MOST, load_metadata
from tierstore_torch.convert.window import Window
from tierstore_torch.dcp.metadata import path_of, path_text
from tierstore_torch.state.encoding import encode_value
from tierstore_torch.state.items import dtype_name, dtype_named

_SEAL = ".metadata"
_OWN = re.compile(r"__\d+_\d+\.distcp|\.metadata")


@contextmanager
def read(place: Place, allow_pickle: bool) -> Iterator[Incoming]:
    """Open a folder that `dcp.save` wrote; each saved shard stays a chunk.

    Raises:
        UnsafePickleError: `.metadata` names classes that are not DCP's.
        FormatError: it or an item is damaged, or is of another format.
    """
    where = f"{place.url}/{_SEAL}"
    try:
        if place.size(_SEAL) > MOST:
            raise FormatError(f"{where} has over {MOST} bytes, which none has")
        data = place.read(_SEAL)
    except NotFoundError as error:
        raise FormatError(
            f"{where} is missing", hint="the folder is no checkpoint of DCP, or an unfinished one"
        ) from error
    metadata = load_metadata(data, where, allow_pickle=allow_pickle)
    try:
        items, values = _Folder(place, metadata).contents()
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        if isinstance(error, TierstoreError):
            raise
        raise FormatError(f"{where} contradicts itself: {error!r}") from error
    files = {info.relative_path for info in metadata.storage_data.values()}
    taken = {_SEAL, *files}
    yield Incoming(items, values, left_out=[name for name in place.names() if name not in taken])


class _Folder:
    """A folder, and the distcp files of which an item was looked at."""

    def __init__(self, place: Place, metadata: Metadata) -> None:
        self._place = place
        self._metadata = metadata
        self._seen: set[str] = set()
        self._sizes: dict[str, int] = {}

    def contents(self) -> tuple[list[Foreign], list[ValueEntry]]:
        """Return all tensors and values."""
        planned = self._metadata.planner_data
        paths = planned if isinstance(planned, dict) else {}
        items: list[Foreign] = []
        values: list[ValueEntry] = []
        for name, entry in self._metadata.state_dict_metadata.items():
            path = path_text(paths[name]) if name in paths else ""
            if isinstance(entry, BytesStorageMetadata):
                values.append(_value(name, path, self._window(MetadataIndex(name)).whole()))
            else:
                chunks = (_chunk(name, path, entry, box) for box in entry.chunks)
                items += [self._item(c) for c in chunks if c.nbytes or not entry.size.numel()]
        return items, values

    def _window(self, index: MetadataIndex) -> Window:
        info = self._metadata.storage_data[index]
        if through := getattr(info, "transform_descriptors", None):
            raise FormatError(f"{index.fqn} is stored through the extension {through}")
        key, end = check_key(info.relative_path), info.offset + info.length
        if key not in self._sizes:
            self._sizes[key] = self._place.size(key)
        if min(info.offset, info.length) < 0 or end > self._sizes[key]:
            raise FormatError(
                f"{self._place.url}/{key} ends before byte {end}, where {index.fqn} does",
                hint="the file was cut short: copy it again",
            )
        return Window(self._place.backend, key, info.offset, info.length)

    def _item(self, chunk: Chunk) -> Foreign:
        """Look at an item's directory; of a file's first item also at its writer's byte order."""
        window = self._window(MetadataIndex(chunk.name, torch.Size(chunk.offsets)))
        where = f"{self._place.url}/{window.key}: {chunk.name} at {chunk.offsets}"
        if window.key not in self._seen:
            self._seen.add(window.key)
            check_archive(cast("Any", window), where)
        try:
            tensor = torch.load(cast("Any", window), map_location="meta", weights_only=True)
            start = window.start + torch_private.checkpoint_offset(tensor)
        except TierstoreError:
            raise
        except Exception as error:
            raise FormatError(f"{where} is not what torch.save writes: {error!r}") from error
        if (tuple(tensor.shape), dtype_name(tensor.dtype)) != (chunk.sizes, chunk.dtype):
            raise FormatError(
                f"{where} is a {tensor.dtype} of shape {tuple(tensor.shape)}, "
                f"which {_SEAL} does not say"
            )
        if is_row_major(tensor):
            offset = start + tensor.storage_offset() * tensor.element_size()
            return Foreign(chunk, reader_of(self._place.backend, window.key, offset))
        if self._place.local is None:
            raise PlanError(
                f"{where} is stored transposed",
                hint="such a folder has to be on this machine: copy it to a local disk first",
            )
        path = self._place.local / window.key
        return Foreign(chunk, strided_reader(_mapped(path, start, tensor)))


def _chunk(name: str, path: str, entry: TensorStorageMetadata, box: ChunkStorageMetadata) -> Chunk:
    dtype = dtype_name(entry.properties.dtype)
    return Chunk(name, dtype, tuple(entry.size), tuple(box.offsets), tuple(box.sizes), path)


def _value(name: str, path: str, data: bytes) -> ValueEntry:
    """Plain values become plain; others stay the pickle that they are, and are not looked at."""
    try:
        known = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        kind, text = encode_value(name, known)
    except Exception:  # whatever it is, it is kept
        kind, text = "opaque", data
    return ValueEntry(name, path, kind, text if kind == "json" else data)


def _mapped(path: Path, start: int, meta: torch.Tensor) -> torch.Tensor:
    """Return the tensor over a private mapping of its file."""
    storage = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    part = storage[start : start + meta.untyped_storage().nbytes()]
    tensor = torch.empty(0, dtype=meta.dtype, device="cpu").set_(
        part, meta.storage_offset(), meta.shape, meta.stride()
    )
    if meta.is_conj():
        tensor = tensor.conj()
    return torch_private.neg_view(tensor) if meta.is_neg() else tensor


def write(outgoing: Outgoing, name: str) -> Layout:
    """Lay tensors and values out as one rank of `dcp.save` does.

    Raises:
        PlanError: torch cannot save a tensor's dtype.
        UnsafePickleError: a value is a pickle, and pickles are not allowed.
    """
    del name
    check_dtypes(outgoing.items)
    writer = _Writer(outgoing.max_shard)
    for value in outgoing.values:
        writer.add(
            value.name,
            path_of(value.name, value.path),
            BytesStorageMetadata(),
            [_bytes(value, outgoing)],
        )
    for item in outgoing.items:
        chunk = item.chunk
        entry = TensorStorageMetadata(
            properties=TensorProperties(dtype=dtype_named(chunk.dtype)),
            size=torch.Size(chunk.shape),
            chunks=[ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))],
        )
        writer.add(chunk.name, path_of(chunk.name, chunk.path), entry, skeleton(item))
    return writer.layout()


def _bytes(value: ValueEntry, outgoing: Outgoing) -> bytes:
    if value.kind == "opaque":
        return bytes(value.data)  # as it came, and not looked at
    buffer = io.BytesIO()
    torch.save(loaded(value, outgoing.allow_pickle), buffer)
    return buffer.getvalue()


class _Writer:
    """Puts items into files, a new one where the next has no room."""

    def __init__(self, max_shard: int) -> None:
        self._max = max_shard
        self._files: list[list[bytes | StoredTensor]] = [[]]
        self._at = 0
        self._entries: dict[str, Any] = {}
        self._paths: dict[str, Any] = {}
        self._places: dict[MetadataIndex, Any] = {}

    def add(self, name: str, path: Any, entry: Any, pieces: list[bytes | StoredTensor]) -> None:
        """Put one item behind the last."""
        plan = FilePlan("", pieces)
        if self._at and self._at + plan.size > self._max:
            self._files.append([])
            self._at = 0
        index = MetadataIndex(name)
        if isinstance(entry, TensorStorageMetadata):
            index = MetadataIndex(name, entry.chunks[0].offsets, 0)
        self._places[index] = torch_private.storage_info(self._name(-1), self._at, plan.size)
        self._entries[name], self._paths[name] = entry, path
        self._files[-1] += pieces
        self._at += plan.size

    def _name(self, number: int) -> str:
        return f"__0_{number % len(self._files)}.distcp"

    def layout(self) -> Layout:
        """Return all files, the metadata last."""
        metadata = Metadata(
            state_dict_metadata=self._entries, planner_data=self._paths, storage_data=self._places
        )
        files = [FilePlan(self._name(n), pieces) for n, pieces in enumerate(self._files)]
        return Layout(files, last=FilePlan(_SEAL, [pickle.dumps(metadata)]))


FORMAT = Format(
    suffixes=(),
    folder=True,
    read=read,
    write=write,
    owns=lambda name: bool(_OWN.fullmatch(name)),
    seal=_SEAL,
)
