"""The header of a segment: names, writing and reading.

A segment is a safetensors file: the length of the header (8 bytes, little endian), a JSON object,
the tensors' bytes. The format: https://github.com/huggingface/safetensors#format

The JSON is padded with spaces so that the tensors start on a 4 KiB boundary. A whole tensor keeps
its name; a chunk of one is `name@o0,o1`, with the offset of its first element in each dimension.
A whole tensor whose name could be read otherwise (it ends like a chunk's, ends with "@", or is the
format's own "__metadata__") gets one "@" more at its end.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from math import prod
from typing import NoReturn, TypeGuard

from tierstore.blocks import ALIGNMENT, Buffer
from tierstore.errors import FormatError, NewerFormatError
from tierstore.image.dtypes import TAG_BITS

MAX_HEADER = 100_000_000
"""Bytes the JSON of a header may have; safetensors refuses more."""

MAX_DIMS = 256
"""Dimensions that a tensor may have."""

PREFIX = 8
"""Bytes in front of the JSON."""

FORMAT = 1
"""The version of segments that this tierstore writes, and the newest it reads."""

_METADATA = "__metadata__"
# transformers opens only files whose "format" says which framework wrote them.
OPENING = f'{{"{_METADATA}":{{"format":"pt","tierstore":"{FORMAT}"}}'
"""How the JSON begins; entries follow, each after a comma, then "}"."""

_CHUNK = re.compile(r"(.*)@([0-9]+(?:,[0-9]+)*)", re.DOTALL)
_quote = json.encoder.encode_basestring


def stored_name(name: str, offsets: tuple[int, ...], *, whole: bool) -> str:
    """Return the name that a tensor, or a chunk of one, has in its segment."""
    if not whole:
        return f"{name}@{','.join(map(str, offsets))}"
    # "@" in the name is rare, and the pattern is slow.
    if name == _METADATA or ("@" in name and (name[-1] == "@" or _CHUNK.fullmatch(name))):
        return f"{name}@"
    return name


def parse_name(stored: str) -> tuple[str, tuple[int, ...] | None]:
    """Return the tensor's name and the chunk's offsets, or None for a whole tensor."""
    if match := _CHUNK.fullmatch(stored):
        return match[1], tuple(map(int, match[2].split(",")))
    return stored.removesuffix("@"), None


def entry_text(stored: str, tag: str, shape: tuple[int, ...], begin: int, end: int) -> str:
    """Return one entry's JSON; `begin` and `end` count from the first tensor byte."""
    dims = ",".join(map(str, shape))
    return f',{_quote(stored)}:{{"dtype":"{tag}","shape":[{dims}],"data_offsets":[{begin},{end}]}}'


def padded_size(text_size: int) -> int:
    """Return where the tensors start when the JSON has `text_size` bytes before padding."""
    return -(-(PREFIX + text_size) // ALIGNMENT) * ALIGNMENT


def header_bytes(text: bytes) -> bytes:
    """Return the whole header, length and padding included, of this JSON."""
    size = padded_size(len(text)) - PREFIX
    return size.to_bytes(PREFIX, "little") + text.ljust(size)


@dataclass(frozen=True, slots=True)
class HeaderEntry:
    """One tensor or chunk in a segment.

    Attributes:
        name: the tensor's name.
        chunk: offsets of the chunk's first element in the tensor, or None for a whole tensor.
        tag: the safetensors dtype.
        shape: the stored shape.
        offset: byte offset in the file.
        nbytes: bytes.
    """

    name: str
    chunk: tuple[int, ...] | None
    tag: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def header_size(prefix: Buffer) -> int:
    """Return how many bytes the header has, from the first 8 bytes of a segment.

    Raises:
        FormatError: it is not a safetensors file.
    """
    if len(prefix) < PREFIX:
        raise FormatError(f"a segment has at least {PREFIX} bytes, this has {len(prefix)}")
    size = int.from_bytes(bytes(prefix[:PREFIX]), "little")
    if not 2 <= size <= MAX_HEADER:
        raise FormatError(f"the header says that it has {size} bytes; not a safetensors file")
    return PREFIX + size


def read_header(data: Buffer, *, foreign: bool = False) -> list[HeaderEntry]:
    """Return a segment's entries in the order of their bytes.

    Args:
        data: the segment, or at least its header.
        foreign: it is somebody else's file, whose names say nothing about chunks.

    Raises:
        FormatError: the header is damaged or cut short, or not safetensors.
        NewerFormatError: a newer tierstore wrote the segment.
    """
    size = header_size(data)
    if len(data) < size:
        raise FormatError(f"the header has {size} bytes, of which only {len(data)} are there")
    try:
        table = json.loads(bytes(data[PREFIX:size]).decode())
        if type(table) is not dict:
            _refuse("is not an object")
        _check_metadata(table.pop(_METADATA, {}))
        "".join(table).encode()  # a lone surrogate is no name
        entries = [_entry(stored, value, size, foreign) for stored, value in table.items()]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FormatError(f"the header of a segment cannot be read: {error!r}") from error
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    position = size
    for entry in entries:
        if entry.offset != position:
            raise FormatError(f"tensor {entry.name!r} does not follow the one before it")
        position += entry.nbytes
    return entries


def _refuse(what: str) -> NoReturn:
    raise FormatError(f"the header of a segment {what}")


def _naturals(value: object) -> TypeGuard[list[int]]:
    if type(value) is not list or len(value) > MAX_DIMS:
        return False
    return all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_metadata(metadata: object) -> None:
    if type(metadata) is not dict or any(type(value) is not str for value in metadata.values()):
        _refuse("has metadata that are not strings")
    version = metadata.get("tierstore", "0")
    if not re.fullmatch(r"[0-9]{1,9}", version):
        _refuse(f"has the version {version[:20]!r}")
    if int(version) > FORMAT:
        raise NewerFormatError(
            f"a segment has format {version}, this tierstore reads up to {FORMAT}",
            hint="install a newer tierstore",
        )


def _entry(stored: str, value: dict[str, object], data_start: int, foreign: bool) -> HeaderEntry:
    tag, shape, span = value["dtype"], value["shape"], value["data_offsets"]
    if type(tag) is not str or tag not in TAG_BITS:
        _refuse(f"gives tensor {stored!r} the unknown dtype {tag!r}")
    if not (_naturals(shape) and _naturals(span) and len(span) == 2):
        _refuse(f"gives tensor {stored!r} an impossible shape or place")
    begin, end = span
    if end < begin or prod(shape) * TAG_BITS[tag] != (end - begin) * 8:
        _refuse(f"gives tensor {stored!r} of shape {shape} {end - begin} bytes")
    name, chunk = (stored, None) if foreign else parse_name(stored)
    return HeaderEntry(name, chunk, tag, tuple(shape), data_start + begin, end - begin)
