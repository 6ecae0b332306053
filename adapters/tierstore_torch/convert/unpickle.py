"""DCP's `.metadata` is a pickle, of which only DCP's classes and plain containers are made."""

from __future__ import annotations

import io
import pickle
from pathlib import PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from tierstore.errors import FormatError, UnsafePickleError

_DCP = "torch.distributed.checkpoint"
_ALLOWED = {
    (f"{_DCP}.metadata", name)
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
} | {
    (f"{_DCP}.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    *(("builtins", name) for name in ("dict", "list", "tuple", "set", "frozenset")),
}
_PATHS = ("Path", "PosixPath", "PurePath", "PurePosixPath")  # of a checkpoint_id


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return what a pickle names, if it is harmless."""
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module in ("pathlib", "pathlib._local") and name in _PATHS:
            return PurePosixPath
        raise UnsafePickleError(
            f"it names {module}.{name}",
            hint="--allow-pickle loads it all the same; only if you trust who wrote it",
        )


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
    stream = io.BytesIO(data)
    try:
        # S301: that is what the caller asked for.
        found = pickle.load(stream) if allow_pickle else _Restricted(stream).load()  # noqa: S301
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{where}: {error.message}", hint=error.hint) from None
    except Exception as error:
        raise FormatError(f"{where} is no metadata of DCP: {error!r}") from error
    if not isinstance(found, Metadata):
        raise FormatError(f"{where} holds a {type(found).__name__}, not DCP's metadata")
    return found
