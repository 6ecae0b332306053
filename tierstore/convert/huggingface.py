"""Hugging Face's safetensors: one `model.safetensors`, or several files and an index.

The layout is that of `huggingface_hub.save_torch_state_dict`: `model-00001-of-00003.safetensors`
and so on, and `model.safetensors.index.json` with `weight_map` (tensor -> file) and
`metadata.total_size`. https://huggingface.co/docs/safetensors and
https://huggingface.co/docs/huggingface_hub/package_reference/serialization
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

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
from tierstore.errors import ConfigError, FormatError, NotFoundError, PlanError
from tierstore.image.dtypes import NATIVE, stored_type
from tierstore.image.header import (
    MAX_HEADER,
    PREFIX,
    HeaderEntry,
    entry_text,
    header_bytes,
    header_size,
    read_header,
)
from tierstore.image.layout import Chunk
from tierstore.keys import check_key
from tierstore.text import has_too_many_members, some

SUFFIX = ".safetensors"
INDEX = ".safetensors.index.json"
_STEM = "model"
_OPENING = '{"__metadata__":{"format":"pt"}'  # transformers opens no file without it
_PART = re.compile(r".*-\d{5}-of-(?!00001\.)\d{5}\.safetensors")
_OWN = re.compile(rf"{_STEM}(-[0-9]{{5}}-of-[0-9]{{5}})?\.safetensors(\.index\.json)?")


@contextmanager
def read(place: Place, allow_pickle: bool) -> Iterator[Incoming]:
    """Open a safetensors file, or a folder of them; nothing in it is a pickle.

    Raises:
        FormatError: a file is damaged, or the index says something else than the files.
        ConfigError: the folder has several files and no index.
    """
    del allow_pickle
    files, wanted = _files(place)
    items = [item for file in files for item in _items(place, file)]
    names = [item.chunk.name for item in items]
    if wanted is not None:
        _check_index(place, wanted, items)
    elif len(set(names)) != len(names):
        raise FormatError(f"{place.url}: a tensor is in two files")
    taken = {*files, place.name}
    others = [] if place.name else [name for name in place.names() if name not in taken]
    yield Incoming(items, left_out=[name for name in others if not name.endswith(INDEX)])


def _files(place: Place) -> tuple[list[str], dict[str, str] | None]:
    """Return the files that make up the model, and the file of each tensor if an index says it."""
    names = [place.name] if place.name else list(place.names())
    indices = [name for name in names if name.endswith(INDEX)]
    if len(indices) == 1:
        weights = _weight_map(place, indices[0])
        return sorted(set(weights.values())), weights
    files = [name for name in names if name.endswith(SUFFIX)]
    if not place.name and not indices:
        if f"{_STEM}{SUFFIX}" in files:
            return [f"{_STEM}{SUFFIX}"], None
        if parts := [name for name in files if _PART.fullmatch(name)]:
            raise FormatError(
                f"{place.url} has {parts[0]} and no index: it is not the whole model",
                hint="fetch it again, or name one file to import that alone",
            )
    if len(indices) > 1 or len(files) != 1:
        raise ConfigError(
            f"{place.url} has {len(indices) or 'no'} index files and {len(files)} {SUFFIX} files",
            hint="name one index or one file" if indices or files else "name the model's folder",
        )
    return files, None


def _weight_map(place: Place, index: str) -> dict[str, str]:
    try:
        text = place.read(index, limit=MAX_HEADER)
        if has_too_many_members(text):
            raise ValueError("it has too many members")
        weights: Any = json.loads(text)["weight_map"]
        if not all(type(part) is str for item in weights.items() for part in item):
            raise TypeError("weight_map is not of names")
        for file in weights.values():
            check_key(file)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FormatError(f"{place.backend.url}/{index} is no index: {error!r}") from error
    return dict(weights)


def _check_index(place: Place, weights: dict[str, str], items: Sequence[Foreign]) -> None:
    here = {item.chunk.name for item in items}
    if missing := sorted(weights.keys() - here):
        raise FormatError(
            f"{place.url}: the index names {some(missing)}, which no file has",
            hint="fetch the files of one revision again",
        )
    if extra := sorted(here - weights.keys()):
        raise FormatError(f"{place.url}: the files have {some(extra)}, which the index does not")


def _items(place: Place, file: str) -> Iterator[Foreign]:
    """Yield the tensors of one file."""
    where = f"{place.backend.url}/{file}"
    try:
        size = place.size(file)
        prefix = bytearray(min(size, PREFIX))
        place.backend.read_into(file, 0, memoryview(prefix))
        end = header_size(prefix)
        if end > size:
            raise FormatError("it ends within its header")
        header = bytearray(end)
        place.backend.read_into(file, 0, memoryview(header))
        entries = read_header(header, foreign=True)
    except NotFoundError as error:
        raise FormatError(f"{where} is missing, and the index names it") from error
    except FormatError as error:
        raise FormatError(f"{where}: {error.message}", hint=error.hint) from error
    if (entries[-1].offset + entries[-1].nbytes if entries else end) != size:
        raise FormatError(f"{where} has {size} bytes, and its header says otherwise")
    for entry in entries:
        yield Foreign(_chunk(entry, where), reader_of(place.backend, file, entry.offset))


def _chunk(entry: HeaderEntry, where: str) -> Chunk:
    dtype = NATIVE[entry.tag]
    shape, packed = entry.shape, stored_type(dtype).packed
    if packed > 1:
        if not shape or shape[-1] % packed:
            raise FormatError(f"{where}: {entry.name} of {entry.tag} has the shape {shape}")
        shape = (*shape[:-1], shape[-1] // packed)
    return Chunk(entry.name, dtype, shape, (0,) * len(shape), shape)


def write(outgoing: Outgoing, name: str) -> Layout:
    """Lay tensors out as Hugging Face does: by name, a new file where the next has no room.

    Raises:
        PlanError: a tensor's dtype has no place in the format, there are values that the caller
            did not choose to leave, or one file is wanted and the tensors need several.
    """
    if outgoing.values and not outgoing.chosen:
        _refuse_values([value.name for value in outgoing.values])
    for item in outgoing.items:
        _check(item)
    shards = list(_shards(outgoing))
    if name and len(shards) > 1:
        raise PlanError(
            f"{name} would have more than {outgoing.max_shard} bytes",
            hint="name a folder, or raise --max-shard-size",
        )
    if len(shards) == 1:
        names = [name or f"{_STEM}{SUFFIX}"]
    else:
        count = len(shards)
        names = [f"{_STEM}-{number:05d}-of-{count:05d}{SUFFIX}" for number in range(1, count + 1)]
    files = [_file(file, shard) for file, shard in zip(names, shards, strict=True)]
    return Layout(
        files,
        last=_index(names, shards) if len(shards) > 1 else None,
        left_out=[value.name for value in outgoing.values],
        note="config.json, tokenizer and the like are in no checkpoint: put them beside it",
    )


def _refuse_values(names: Sequence[str]) -> NoReturn:
    raise PlanError(
        f"{len(names)} of what is selected are no tensors, which is all that safetensors holds: "
        f"{some(names)}",
        hint="--only 'model.*' takes the model of a training state, --strip-prefix model. names "
        "it as the model does; with --only what is no tensor is left out",
    )


def _check(item: StoredTensor) -> None:
    chunk = item.chunk
    if NATIVE[stored_type(chunk.dtype).tag] != chunk.dtype:
        raise PlanError(
            f"{chunk.name} is of {chunk.dtype}, which safetensors does not hold",
            hint="leave it out with --exclude, or export to torch or dcp",
        )
    if chunk.name == "__metadata__":
        raise PlanError("safetensors holds no tensor called __metadata__")


def _shards(outgoing: Outgoing) -> Iterator[list[StoredTensor]]:
    shard: list[StoredTensor] = []
    room = outgoing.max_shard
    for item in outgoing.items:
        if shard and item.chunk.nbytes > room:
            yield shard
            shard, room = [], outgoing.max_shard
        shard.append(item)
        room -= item.chunk.nbytes
    yield shard  # a model without tensors is one file, too


def _file(name: str, shard: Sequence[StoredTensor]) -> FilePlan[StoredTensor]:
    order = sorted(
        shard, key=lambda item: (-stored_type(item.chunk.dtype).itemsize, item.chunk.name)
    )
    text, at = [_OPENING], 0
    for item in order:
        chunk, stored = item.chunk, stored_type(item.chunk.dtype)
        end = at + chunk.nbytes
        text.append(entry_text(chunk.name, stored.tag, stored.shape(chunk.shape), at, end))
        at = end
    return FilePlan(name, [header_bytes(("".join(text) + "}").encode()), *order])


def _index(
    names: Sequence[str], shards: Sequence[Sequence[StoredTensor]]
) -> FilePlan[StoredTensor]:
    weights = {
        item.chunk.name: name for name, shard in zip(names, shards, strict=True) for item in shard
    }
    total = sum(item.chunk.nbytes for shard in shards for item in shard)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weights.items()))}
    return FilePlan(f"{_STEM}{INDEX}", [json.dumps(index, indent=2).encode() + b"\n"])


FORMAT = Format(
    suffixes=(SUFFIX,),
    folder=True,
    read=read,
    write=write,
    owns=lambda name: bool(_OWN.fullmatch(name)),
    seal=f"{_STEM}{INDEX}",
)
