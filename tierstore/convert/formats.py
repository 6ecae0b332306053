"""Foreign formats: what each one can do, and how it is found.

A format is found by its name in the entry-point group "tierstore.formats", whose objects are
`Format`s. So formats that need torch are in the package that does, and others can be added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from importlib import metadata

from tierstore.backend import Backend
from tierstore.checkpoint.fragment import ValueEntry
from tierstore.checkpoint.manifest import Tensor
from tierstore.convert.files import FilePlan
from tierstore.convert.place import Place
from tierstore.errors import ConfigError
from tierstore.image.layout import Chunk
from tierstore.registry import nearest, path_of
from tierstore.transfer.pieces import Slice

GROUP = "tierstore.formats"
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
"""How files of torch.save are called."""


@dataclass(frozen=True, slots=True, eq=False)
class Foreign:
    """A tensor, or a box of one, of a foreign checkpoint.

    Attributes:
        chunk: what it is.
        read: fills the memory with the box's bytes, in row-major order, from the given one on;
            called from several threads.
    """

    chunk: Chunk
    read: Callable[[int, memoryview], None]


@dataclass(frozen=True, slots=True, eq=False)
class Incoming:
    """An open foreign checkpoint.

    Attributes:
        items: its tensors.
        values: what is no tensor.
        left_out: files, or kinds of content, that are not taken over.
    """

    items: Sequence[Foreign]
    values: Sequence[ValueEntry] = ()
    left_out: Sequence[str] = ()


@dataclass(frozen=True, slots=True, eq=False)
class StoredTensor:
    """A tensor of tierstore, whole, under the name that it gets.

    Attributes:
        chunk: name, dtype, shape and path.
        tensor: where its bytes are.
    """

    chunk: Chunk
    tensor: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Outgoing:
    """What is exported.

    Attributes:
        items: the tensors, sorted by name.
        values: what is no tensor, sorted by name.
        chosen: whether the caller said which names to take.
        max_shard: bytes that one file may have, unless one tensor is larger.
        allow_pickle: values that are stored as pickles may be loaded.
    """

    items: Sequence[StoredTensor]
    values: Sequence[ValueEntry]
    chosen: bool
    max_shard: int
    allow_pickle: bool


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The files of an export.

    Attributes:
        files: written first, in any order; none alone looks like a checkpoint, or each is one.
        last: written when all others are there; without it nothing opens them.
        left_out: names of values that the format cannot hold and the caller did not ask for.
        note: what a person should know about the result.
    """

    files: Sequence[FilePlan[StoredTensor]]
    last: FilePlan[StoredTensor] | None = None
    left_out: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Format:
    """One foreign format.

    Attributes:
        suffixes: of file names, where the target is one file; () where it is a folder only.
        folder: whether a folder can be the target.
        read: opens what is at a place; `allow_pickle` lets it run what a pickle says.
        write: lays an export out; the name is that of the file, empty for a folder.
        owns: whether a file in the target's folder is of an export of this format, by its name.
        seal: the name of the file without which the others are no checkpoint.
    """

    suffixes: tuple[str, ...]
    folder: bool
    read: Callable[[Place, bool], AbstractContextManager[Incoming]]
    write: Callable[[Outgoing, str], Layout]
    owns: Callable[[str], bool]
    seal: str = ""


@cache
def _entries() -> Mapping[str, metadata.EntryPoint]:
    return {entry.name: entry for entry in metadata.entry_points(group=GROUP)}


def find_format(name: str) -> Format:
    """Return a format by its name.

    Raises:
        ConfigError: there is none, or it needs a package that is not installed.
    """
    entry = _entries().get(name)
    if entry is None:
        raise ConfigError(f"there is no format {name!r}", hint=nearest(name, sorted(_entries())))
    try:
        found: Format = entry.load()
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the format {name!r} needs {error.name}, which is not installed",
            hint="pip install 'tierstore[torch]'",
        ) from error
    return found


def guess_source(place: Place) -> str:
    """Return the name of the format that lies at a place.

    Raises:
        ConfigError: nothing tells.
        NotFoundError: there is nothing.
    """
    if place.name:
        return _of_file(place.name) or _unknown(place.url)
    names = place.names()
    if ".metadata" in names:
        return "dcp"
    if any(name.endswith(".safetensors") for name in names):
        return "hf"
    pickles = [name for name in names if name.endswith(TORCH_SUFFIXES)]
    if pickles:
        raise ConfigError(
            f"{place.url} is a folder with the torch file {pickles[0]}",
            hint="import the file itself; of several, each one becomes a checkpoint",
        )
    return _unknown(place.url)


def guess_target(text: str) -> str:
    """Return the name of the format that a target's name stands for.

    Raises:
        ConfigError: it does not tell.
    """
    found = _of_file(path_of(text))
    if found is None:
        raise ConfigError(f"{text!r} does not tell the format", hint="say --to hf or --to dcp")
    return found


def _of_file(name: str) -> str | None:
    if name.endswith((".safetensors", ".safetensors.index.json")):
        return "hf"
    return "torch" if name.endswith(TORCH_SUFFIXES) else None


def _unknown(url: str) -> str:
    known = ", ".join(sorted(_entries()))
    raise ConfigError(f"{url} is of no format that is known here", hint=f"say --from: {known}")


def read_foreign(slices: Sequence[Slice[Foreign]]) -> None:
    """Fill slices of foreign tensors."""
    for part in slices:
        part.item.read(part.begin, part.into)


def reader_of(backend: Backend, key: str, offset: int) -> Callable[[int, memoryview], None]:
    """Return what reads a tensor that lies in one piece of a file from `offset` on."""
    return lambda begin, into: backend.read_into(key, offset + begin, into)
