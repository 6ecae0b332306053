"""Large numpy arrays: stored as tensors, and restored as the arrays that they were.

As values they would be base64 in every manifest. Their path says what they were: its last step is
`{"array": "<f8"}`, numpy's dtype. Types that torch does not have, such as dates, text and other
byte orders, are stored as bytes, with one dimension more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tierstore.checkpoint.manifest import Tensor
from tierstore.checkpoint.paths import array_mark
from tierstore.errors import FormatError
from tierstore_torch.state.items import dtype_name

LARGE = 16 * 1024
"""Bytes from which an array is stored as a tensor; a random generator's state is smaller."""

Array = npt.NDArray[Any]

_NATIVE = {
    np.dtype(getattr(np, name)): getattr(torch, name if name != "bool_" else "bool")
    for name in (
        *("bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
}


def is_large(value: object) -> bool:
    """Whether a value is an array that is stored as a tensor."""
    return (
        type(value) is np.ndarray
        and value.nbytes >= LARGE
        and value.dtype.kind in "biufcmMUS"
        and value.dtype.char not in "gG"  # long doubles differ between machines
        and not value.dtype.metadata
    )


def tensor_of(array: Array) -> torch.Tensor:
    """Return an array's numbers as they are stored, over its memory where that is possible."""
    plain = np.ascontiguousarray(array)
    if not plain.flags.writeable:  # torch warns of it
        plain = plain.copy()
    if plain.dtype not in _NATIVE:
        plain = plain.view(np.uint8).reshape(*array.shape, array.itemsize)
    return torch.from_numpy(plain)


def array_type(path: str) -> np.dtype[Any] | None:
    """Return the dtype of the array that is stored under a path; None if it is a tensor."""
    mark = array_mark(path)
    try:
        return np.dtype(mark) if mark else None
    except (TypeError, ValueError) as error:
        raise FormatError(f"a path says {path!r:.100}, which numpy does not know") from error


def new_array(saved: Tensor, dtype: np.dtype[Any]) -> tuple[Array, torch.Tensor]:
    """Return an array for what was saved, and the tensor over its memory that is to be filled.

    Raises:
        FormatError: the tensor is not what arrays of this dtype are stored as.
    """
    native = _NATIVE.get(dtype)
    shape = saved.shape if native else saved.shape[:-1]
    stored = dtype_name(native or torch.uint8)
    if saved.dtype != stored or saved.shape != (shape if native else (*shape, dtype.itemsize)):
        raise FormatError(
            f"{saved.name}: a {saved.dtype} of shape {saved.shape} is no array of {dtype}"
        )
    array = np.empty(shape, dtype)
    memory = array if native else array.view(np.uint8).reshape(saved.shape)
    return array, torch.from_numpy(memory)
